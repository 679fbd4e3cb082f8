"""PyTorch's side of the benchmark `gemm`: for each line `m n k trans_a trans_b threads seconds`
of the input the best time in seconds of `torch.mm(a, b, out=..)` within so many seconds."""

import sys
import time

import torch


def main():
    print(f"PyTorch {torch.__version__}", flush=True)
    for line in sys.stdin:
        m, n, k, trans_a, trans_b, threads = map(int, line.split()[:6])
        seconds = float(line.split()[6])
        torch.set_num_threads(threads)
        a = torch.rand(k, m).T if trans_a else torch.rand(m, k)
        b = torch.rand(n, k).T if trans_b else torch.rand(k, n)
        out = torch.empty(m, n)
        torch.mm(a, b, out=out)
        best, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < seconds:
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - began)
        print(best, flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
