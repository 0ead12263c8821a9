/* Read ranges of files and look at every element: what numpy would do in several passes over memory,
   with a stop of all other threads between them. native.py says what is returned. */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* native.py knows what has this number: it grows with every change of a structure, of a function's
   parameters, and of the order in which sums are made. */
enum { VERSION = 2 };

/* On x86-64 the loops are made for AVX2. A product and a sum are two roundings everywhere, since
   numpy knows no other way; fma() is only used where the product is exact. */
#if defined(__x86_64__)
#include <immintrin.h>
#define FAST __attribute__((target("avx2,fma")))
static int has_what_it_takes(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
#define FAST
static int has_what_it_takes(void)
{
    return sizeof(void *) == 8 && FLT_EVAL_METHOD == 0;
}
#endif

/* The version, or 0 where the loops cannot run or would round otherwise. */
int vita_ckpt_version(void)
{
    return has_what_it_takes() ? VERSION : 0;
}

#define INLINE static inline __attribute__((always_inline))

/* Elements of a block, lanes of its sums, and what is read at once: few calls, and still a cache. */
enum { BLOCK = 1 << 17, LANES = 512, BLOCKS = 4, STEP = 1 << 21 };

/* Memory whose addresses are congruent to offsets in a file is copied to faster. */
enum { PAGE = 4096 };

/* Whatever stops it is for the caller to find out, who reads in another way. */
static int fill(char *memory, int file, size_t size, uint64_t offset)
{
    while (size) {
        ssize_t count = pread(file, memory, size, (off_t)offset);
        if (count <= 0)
            return 0;
        memory += count;
        size -= (size_t)count;
        offset += (size_t)count;
    }
    return 1;
}

struct range {
    uint64_t offset;
    int32_t file, dtype;
};

/* Mark those of some ranges, which follow each other in both files up to their stops, that differ.
   What differs mostly does so at its beginning: steps grow from a page on, and what is left of a
   range that differs is not read. */
int vita_ckpt_differing(const struct range *old, const struct range *new, const uint64_t *stops,
                        size_t count, uint8_t *differs)
{
    uint64_t position = 0, end = count ? stops[count - 1] : 0;
    size_t step = PAGE, index = 0;
    char *memory = malloc(2 * (STEP + PAGE));
    int ok = memory != NULL;
    while (ok && position < end) {
        size_t here = end - position < step ? end - position : step;
        uint64_t from = old->offset + position, to = new->offset + position;
        char *before = memory + from % PAGE, *after = memory + STEP + PAGE + to % PAGE;
        ok = fill(before, old->file, here, from) && fill(after, new->file, here, to);
        if (ok && !memcmp(before, after, here)) {
            position += here;
            step = step < STEP ? 2 * step : STEP;
        } else if (ok) {
            for (; *before == *after; before++, after++)
                position++;
            while (stops[index] <= position)
                index++;
            differs[index] = 1;
            position = stops[index];
            step = PAGE;
        }
    }
    free(memory);
    return ok;
}

enum dtype { BF16, F16, F32 };

INLINE size_t width(int dtype)
{
    return dtype == F32 ? 4 : 2;
}

/* As float32, which holds all of them; whether none is infinite or NaN that float32 would not show. */
INLINE int decode(const char *data, size_t count, int dtype, float *restrict numbers)
{
    uint16_t largest = 0;
    if (dtype == F32)
        memcpy(numbers, data, 4 * count);
    else if (dtype == BF16)
        for (size_t i = 0; i < count; i++) {
            uint16_t pattern;
            memcpy(&pattern, data + 2 * i, 2);
            uint32_t bits = (uint32_t)pattern << 16;
            memcpy(&numbers[i], &bits, 4);
        }
    else
        for (size_t i = 0; i < count; i++) {
            uint16_t pattern, magnitude;
            memcpy(&pattern, data + 2 * i, 2);
            magnitude = pattern & 0x7fff;
            largest = magnitude > largest ? magnitude : largest;
            /* The exponent is 112 more in float32, where what is subnormal in float16 is not. Both
               are made of every element: a branch would keep the compiler from making vectors. */
            uint32_t bits = ((uint32_t)magnitude << 13) + (112u << 23), others;
            float tiny = (float)magnitude * 0x1p-24f;
            memcpy(&others, &tiny, 4);
            uint32_t is_tiny = -(uint32_t)(magnitude < 0x400);
            bits = (others & is_tiny) | (bits & ~is_tiny) | (uint32_t)(pattern & 0x8000) << 16;
            memcpy(&numbers[i], &bits, 4);
        }
    return largest < 0x7c00;
}

struct sums {
    double delta[LANES], before[LANES], after[LANES], largest[LANES];
};

INLINE uint64_t add_row(const float *old, const float *new, size_t count, struct sums *restrict to)
{
    uint64_t changed = 0;
    for (size_t i = 0; i < count; i++) {
        double before = old[i], after = new[i], delta = after - before, square = delta * delta;
        to->delta[i] += square;
        to->before[i] = __builtin_fma(before, before, to->before[i]);
        to->after[i] = __builtin_fma(after, after, to->after[i]);
        to->largest[i] = square > to->largest[i] ? square : to->largest[i];
        changed += square != 0;
    }
    return changed;
}

/* Two rows: each sum is stored once for both. The compiler would convert what it has in registers,
   which is slower than to convert while loading. */
#if defined(__x86_64__)
FAST INLINE uint64_t add_rows(const float *old, const float *new, struct sums *restrict to)
{
    __m256i unchanged = _mm256_setzero_si256();
    uint64_t counts[4];
    for (size_t i = 0; i < LANES; i += 4) {
        __m256d deltas = _mm256_loadu_pd(to->delta + i), olds = _mm256_loadu_pd(to->before + i);
        __m256d news = _mm256_loadu_pd(to->after + i), largest = _mm256_loadu_pd(to->largest + i);
        for (size_t row = 0; row < 2 * LANES; row += LANES) {
            __m256d before = _mm256_cvtps_pd(_mm_loadu_ps(old + row + i));
            __m256d after = _mm256_cvtps_pd(_mm_loadu_ps(new + row + i));
            __m256d delta = _mm256_sub_pd(after, before), square = _mm256_mul_pd(delta, delta);
            deltas = _mm256_add_pd(deltas, square);
            olds = _mm256_fmadd_pd(before, before, olds);
            news = _mm256_fmadd_pd(after, after, news);
            largest = _mm256_max_pd(square, largest);
            __m256i squares = _mm256_castpd_si256(square), zero = _mm256_setzero_si256();
            unchanged = _mm256_sub_epi64(unchanged, _mm256_cmpeq_epi64(squares, zero));
        }
        _mm256_storeu_pd(to->delta + i, deltas);
        _mm256_storeu_pd(to->before + i, olds);
        _mm256_storeu_pd(to->after + i, news);
        _mm256_storeu_pd(to->largest + i, largest);
    }
    _mm256_storeu_si256((__m256i *)counts, unchanged);
    return 2 * LANES - (counts[0] + counts[1] + counts[2] + counts[3]);
}
#else
INLINE uint64_t add_rows(const float *old, const float *new, struct sums *restrict to)
{
    return add_row(old, new, LANES, to) + add_row(old + LANES, new + LANES, LANES, to);
}
#endif

/* The upper half is added to the lower one until one lane is left. */
INLINE double total(double *lanes)
{
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[half + i];
    return lanes[0];
}

FAST
static double dot_of(const char *before, const char *after, size_t count, int old_dtype, int new_dtype)
{
    double lanes[LANES] = {0};
    float old[LANES], new[LANES];
    for (size_t start = 0; start < count; start += LANES) {
        size_t here = count - start < LANES ? count - start : LANES;
        decode(before + start * width(old_dtype), here, old_dtype, old);
        decode(after + start * width(new_dtype), here, new_dtype, new);
        for (size_t i = 0; i < here; i++)
            lanes[i] = __builtin_fma(old[i], new[i], lanes[i]);
    }
    return total(lanes);
}

struct distance {
    double delta, before, after, dot, largest;
    uint64_t changed;
};

FAST
static int add_block(const char *before, const char *after, size_t count, int old_dtype,
                     int new_dtype, struct distance *found)
{
    struct sums sums = {0};
    float old[2 * LANES], new[2 * LANES];
    int finite = 1;
    for (size_t start = 0; start < count;) {
        size_t left = count - start, rows = left < 2 * LANES ? LANES : 2 * LANES;
        size_t here = left < rows ? left : rows;
        finite &= decode(before + start * width(old_dtype), here, old_dtype, old);
        finite &= decode(after + start * width(new_dtype), here, new_dtype, new);
        found->changed +=
            here > LANES ? add_rows(old, new, &sums) : add_row(old, new, here, &sums);
        start += here;
    }
    double delta = total(sums.delta), squares = total(sums.before), others = total(sums.after);
    if (!finite || !(squares - squares == 0) || !(others - others == 0))
        return 0;
    for (size_t i = 0; i < LANES; i++)
        found->largest = sums.largest[i] > found->largest ? sums.largest[i] : found->largest;
    found->delta += delta;
    found->before += squares;
    found->after += others;
    /* Nothing is lost by the first way that the sums themselves do not lose. */
    found->dot += squares / 4 < others && others < squares * 4
                      ? (squares + others - delta) / 2
                      : dot_of(before, after, count, old_dtype, new_dtype);
    return 1;
}

int vita_ckpt_distance(const struct range *old, const struct range *new, size_t count,
                       struct distance *found)
{
    size_t old_width = width(old->dtype), new_width = width(new->dtype);
    int same = !memcmp(old, new, sizeof *old), ok = 1;
    char *memory = malloc(BLOCKS * BLOCK * (old_width + new_width) + 2 * PAGE);
    if (!memory)
        return 0;
    for (size_t start = 0; ok && start < count; start += BLOCKS * BLOCK) {
        size_t here = count - start < BLOCKS * BLOCK ? count - start : BLOCKS * BLOCK;
        uint64_t from = old->offset + start * old_width, to = new->offset + start * new_width;
        char *before = memory + from % PAGE, *after = before;
        ok = fill(before, old->file, here * old_width, from);
        if (ok && !same) {
            after = memory + BLOCKS * BLOCK * old_width + PAGE + to % PAGE;
            ok = fill(after, new->file, here * new_width, to);
        }
        for (size_t at = 0; ok && at < here; at += BLOCK)
            ok = add_block(before + at * old_width, after + at * new_width,
                           here - at < BLOCK ? here - at : BLOCK, old->dtype, new->dtype, found);
    }
    free(memory);
    return ok;
}

struct extent {
    uint64_t first, largest, other;
};

#define DEFINE_EXTENT(type)                                                                    \
    INLINE void extent_of_##type(const char *data, size_t count, struct extent *found)        \
    {                                                                                          \
        type first = (type)found->first, largest = (type)found->largest, other = 0;            \
        for (size_t i = 0; i < count; i++) {                                                   \
            type pattern;                                                                      \
            memcpy(&pattern, data + i * sizeof pattern, sizeof pattern);                       \
            other |= pattern ^ first;                                                          \
            pattern &= (type)-1 >> 1;                                                          \
            largest = pattern > largest ? pattern : largest;                                   \
        }                                                                                      \
        found->largest = largest;                                                              \
        found->other |= other;                                                                 \
    }

DEFINE_EXTENT(uint8_t)
DEFINE_EXTENT(uint16_t)
DEFINE_EXTENT(uint32_t)
DEFINE_EXTENT(uint64_t)

FAST
static void add_extent(const char *data, size_t size, size_t width, struct extent *found)
{
    if (width == 1)
        extent_of_uint8_t(data, size, found);
    else if (width == 2)
        extent_of_uint16_t(data, size / 2, found);
    else if (width == 4)
        extent_of_uint32_t(data, size / 4, found);
    else
        extent_of_uint64_t(data, size / 8, found);
}

int vita_ckpt_extent(int file, uint64_t offset, size_t size, size_t width, struct extent *found)
{
    int ok = 1;
    char *memory = malloc(STEP + PAGE);
    if (!memory)
        return 0;
    for (size_t start = 0; ok && start < size; start += STEP) {
        size_t here = size - start < STEP ? size - start : STEP;
        char *data = memory + (offset + start) % PAGE;
        ok = fill(data, file, here, offset + start);
        if (ok && !start)
            memcpy(&found->first, data, width);
        if (ok)
            add_extent(data, here, width, found);
    }
    free(memory);
    return ok;
}
