#!/usr/bin/env bash
# Everything that a GPU is to show, in one call: checks, times, then distils. From the top folder:
#
#     tests/on_gpu.sh DATA_PATH OUT
#
# Leaves logs, benchmark_*.json and sets in OUT. The same command goes on where it was stopped. A step that fails is said
# and does not end the others. DEVICE=cpu QUICK=1 tries the script itself on the digits, without a GPU.
set -uo pipefail
data=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2")
device=${DEVICE:-cuda} python=${PYTHON:-python3} ipc=$([ "${QUICK:-}" ] && echo 1 || echo 10)
cd "$(dirname "$0")/.."

step() { # name, command...: once, into a log
    local name=$1
    shift
    [ -f "$out/$name.done" ] && return
    if (cd Code && "$@") > "$out/$name.log" 2>&1; then touch "$out/$name.done"; else echo "$name failed: $out/$name.log"; fi
}

# 1. Checks: parity on the GPU, and two runs of one seed.
step test_gpu env BACON_TEST_GPU=1 "$python" -m pytest -n 0 ../tests/test_gpu.py
for run in first second; do
    step "digits_$run" "$python" -u BACON_digits.py --ipc "$ipc" --device "$device" --save_path "$out/$run"
done
step same_seed "$python" -c "
import torch
from utils import storage
sets = [storage.load(f'$out/{run}/res_BACON_digits_ConvNetW32_${ipc}ipc.pt')['data'][0][0] for run in ('first', 'second')]
print('largest difference of two runs of one seed:', float((sets[0] - sets[1]).abs().max()))"

# 2. Times: milliseconds by phase beside the literal loop, share of matrix products and copying.
if [ "${QUICK:-}" ]; then
    cells=("digits --model ConvNetW32 --ipc 1 --batch_real 16 --model_train_steps 1 --no_compile") hows=("fp32")
else
    cells=("CIFAR10 --ipc 1 --batch_real 5000 --net_generate_interval 5" "CIFAR10 --ipc 10" "CIFAR10 --ipc 50"
        "CIFAR100 --ipc 10 --model_train_steps 50" "TinyImageNet --ipc 10 --model_train_steps 50")
    hows=("tf32" "tf32 --compile" "bf16" "bf16 --compile")
fi
for cell in "${cells[@]}"; do
    for how in "${hows[@]}"; do
        # shellcheck disable=SC2086  # these are words
        step "benchmark_$(echo "$cell $how" | tr -cs '[:alnum:]' _)" "$python" -u benchmark.py --rounds 1 \
            --precision $how --device "$device" --data_path "$data" --save_path "$out" --dataset $cell
    done
done

# 3. Published commands in full, one experiment each.
[ "${QUICK:-}" ] && exit
grep -E "^python3 -u BACON_(mnist|f_mnist|cifar10)\.py --dataset" Command.txt | while read -r _ _ script flags; do
    cell=$(echo "$flags" | grep -o -- "--ipc [0-9]*" | tr -d ' -')
    # shellcheck disable=SC2086
    step "${script%.py}_$cell" "$python" -u "$script" $flags --num_exp 1 --device "$device" --data_path "$data" \
        --save_path "$out/sets" --resume auto
done
