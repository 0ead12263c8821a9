# The main job on a real checkpoint: look, merge a trained projector, swap the vision tower, run it.
set -eu
golden=fixtures/golden
rm -rf demo-out

run() {
    echo "\$ $*"
    "$@"
    echo
}

run mkdir -p demo-out
run vita-ckpt inspect $golden/A7/base
run vita-ckpt merge-projector --base $golden/A7/base --adapter $golden/A7/mm_projector_fp32 --out demo-out/merged
run vita-ckpt verify demo-out/merged --tower $golden/A7/tower-internvit --against $golden/A7/base
run vita-ckpt swap-tower --base demo-out/merged --tower $golden/A2/tower-siglip --projector $golden/A2/base --out demo-out/swapped
run vita-ckpt verify demo-out/swapped --against $golden/A7/base
run vita-ckpt diff $golden/A7/base demo-out/swapped --limit 5
