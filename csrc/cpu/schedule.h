// Block pairs in parallel, with the same sums whatever the number of threads.
#pragma once
#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "kernels.h"

namespace arec::cpu {

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Rows are cut into blocks of whole tiles. The size follows from n alone, so that the order of every
// sum does: as large as two blocks fit the second cache, small enough for a few pairs at a time.
inline int64_t block_rows(int64_t n) {
  return n <= 512 ? kTile : n <= 1024 ? 2 * kTile : n <= 4096 ? 4 * kTile : 8 * kTile;
}

// Threads of torch's pool, each calling f(worker, workers).
template <class F>
void parallel(int64_t most, F f) {
  const int64_t workers = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, most);
  if (workers == 1) return f(0, 1);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) f(worker, workers);
  });
}

// Runs, for blocks I <= J of n rows,
//   prepare(I)          once a block, before anything needs it,
//   pair(I, J, worker)  once a pair; it may write to the rows of both blocks,
//   finish(I)           once a block, after the last pair with it.
// A round-robin: in round r block I meets block J with I + J = r mod blocks, so that a block is in
// one pair a round, and a block's pairs follow each other in the order of the rounds. Within a round
// the pairs come in the order of their distance |I - J| around the ring of blocks: a pair follows two
// of the round before whose distances are one less and one more, which are long done. Workers take
// the next task of that one list, and wait until both of its blocks have finished the round before:
// no barrier between rounds, no atomics on sums, no copy a thread. Whoever holds a task waits only
// for earlier ones, which somebody is already running, so one thread alone never waits.
//
// Where a round has too few pairs for the threads, a block is cut into pieces, prepared and finished
// one by one, and a pair of blocks into pairs of pieces (i, j), diagonal after diagonal. As when one
// thread goes over the whole pair, rows first, (i, j) follows (i, j - 1) and (i - 1, j): the same sums.
template <class Prepare, class Pair, class Finish>
void for_each_block_pair(int64_t n, Prepare prepare, Pair pair, Finish finish) {
  const int64_t size = block_rows(n), blocks = (n + size - 1) / size, slots = blocks / 2 + 1;
  const int64_t cut = blocks / 2 < 2 * int64_t(torch::stable::get_num_threads()) ? size / kTile : 1;
  const int64_t piece = size / cut, pieces = blocks * cut, padded_n = round_up(n, kTile);
  const auto rows = [&](int64_t at) {  // none, where the last block is short
    return Rows{std::min(at * piece, padded_n), std::min((at + 1) * piece, padded_n)};
  };
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> done(pieces);  // pairs that a piece has behind it
  for (auto& pairs : done) pairs.store(-1, std::memory_order_relaxed);
  const auto wait = [&](int64_t at, int64_t pairs) {
    for (int spins = 0; done[at].load(std::memory_order_acquire) != pairs; ++spins)
      if (spins > 1000) sched_yield();
  };
  const auto advance = [&](int64_t at, int64_t pairs) {
    if (pairs == pieces) finish(rows(at));
    done[at].store(pairs, std::memory_order_release);
  };
  parallel(slots * cut, [&](int64_t worker, int64_t) {
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task < pieces) {
        prepare(rows(task));
        done[task].store(0, std::memory_order_release);
        continue;
      }
      int64_t rest = task - pieces;
      const auto digit = [&](int64_t base) {
        const int64_t value = rest % base;
        rest /= base;
        return value;
      };
      const int64_t i = digit(cut), slot = digit(slots), j = digit(2 * cut - 1) - i, round = rest;
      if (round >= blocks) return;
      // The pairs are centre -+ x; the distance grows from both ends of the range of x.
      const int64_t odd = blocks % 2 ? 0 : round % 2, last = (blocks - odd) / 2;
      if (slot > last || j < 0 || j >= cut) continue;
      const int64_t centre = blocks % 2 ? round * slots % blocks : round / 2;
      const int64_t x = slot % 2 ? last - slot / 2 : slot / 2;
      const auto [first, second] =
          std::minmax({(centre - x + blocks) % blocks, (centre + odd + x) % blocks});
      if (first == second && i > j) continue;
      const int64_t one = first * cut + i, other = second * cut + j;
      wait(one, round * cut + j);
      wait(other, round * cut + i);
      pair(rows(one), rows(other), worker);
      advance(one, round * cut + j + 1);
      if (other != one) advance(other, round * cut + i + 1);
    }
  });
}

}  // namespace arec::cpu
