#!/bin/sh
# make/test.sh PYTHON [pytest's options]: every test. Most wait more than they compute, so several at once, one more than
# there are processors, each with one thread; then two at once, with all threads, of those that must compute so; then, one
# after the other, what times whole containers.
set -u

python=$1
shift
status=0
several=$(($(nproc 2>/dev/null || echo 3) + 1))
threads="tests/chaos/test_exactness.py"

run() {
    "$python" -m pytest -rs "$@"
    code=$?
    [ $code -eq 0 ] || [ $code -eq 5 ] || status=$code # 5: the options choose none of these
}

(
    export OMP_NUM_THREADS=1
    run -n $several --maxprocesses 4 --dist worksteal \
        tests/unit tests/contract tests/chaos tests/docs tests/launch --ignore "$threads" "$@"
    exit $status
) || status=$?
run -n 2 "$threads" "$@"
run tests/container tests/relay "$@"
exit $status
