# The main job on a real checkpoint: look, merge a trained projector, look again, take it out.
set -eu
golden=fixtures/golden
rm -rf demo-out
mkdir demo-out

run() {
    echo "\$ $*"
    "$@"
    echo
}

run vita-ckpt inspect $golden/A1/base
run vita-ckpt merge-projector --base $golden/A1/base --adapter $golden/A7/mm_projector_fp32 --out demo-out/merged
run vita-ckpt inspect demo-out/merged --tensors '*mm_projector*'
run vita-ckpt extract-projector --from demo-out/merged --out demo-out/mm_projector.bin
run python examples/same_tensors.py $golden/A7/mm_projector_fp32/mm_projector.bin demo-out/mm_projector.bin
