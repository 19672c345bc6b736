// Block pairs in parallel, with the same sums whatever the number of threads.
#pragma once
#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "kernels.h"

namespace arec::cpu {

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Rows are cut into blocks of whole tiles. The size follows from n alone, so that the order of every
// sum does: as large as pays (at 64 columns two blocks fit a second cache of 2 MB), small enough for a few
// pairs at a time.
inline int64_t block_rows(int64_t n) {
  return n <= 512 ? kTile : n <= 1024 ? 2 * kTile : n <= 2048 ? 4 * kTile : 8 * kTile;
}

// Threads that are worth waking up to compare n rows with each other.
inline int64_t workers_for(int64_t n, int64_t dim) {
  constexpr double share = 1 << 20;  // multiply-adds, which are over before another thread has woken up
  const double shares = 0.5 * double(n) * double(n) * double(dim) / share,
               tiles = double(round_up(n, kTile) / kTile);
  return int64_t(std::clamp(shares, 1.0, tiles));
}

// Threads of torch's pool, each calling f(worker, workers). Throws what the first of them throws.
template <class F>
void parallel(int64_t most, F f) {
  const int64_t workers = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, most);
  if (workers == 1) return f(0, 1);
  std::exception_ptr error;
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t worker = begin; worker < end; ++worker) f(worker, workers);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// The tasks of all pairs of blocks of n rows, as one list in which every task follows those it needs; of which
// each owner has its own part, in the same order.
//
// First every block is prepared. Then comes a round-robin: in round r block I meets block J with
// I + J = r mod blocks, so that a block is in one pair a round, and its pairs follow each other in the
// order of the rounds. The pairs of a round lie on the ring of blocks at growing distance from its
// centre: a pair follows two of the round before, the next nearer and the next farther one.
//
// Where a round has too few pairs for the threads, a block is cut into pieces, prepared and finished
// one by one, and a pair of blocks into pairs of pieces (i, j), diagonal after diagonal. As when one
// thread goes over the whole pair, rows first, (i, j) follows (i, j - 1) and (i - 1, j): the same sums.
//
// Where some rows only are local, pairs without any of them are passed over in their turn, as is what other
// pairs have without them, and each owner has a part of the local rows in all their pairs.
class RoundRobin {
 public:
  struct Task {
    enum { kPrepare, kPair, kPassed, kNothing, kEnd } kind;
    int64_t one = 0, other = 0;            // pieces
    int64_t one_turn = 0, other_turn = 0;  // pairs that each must have behind it
  };

  // Local rows of each view, of which the second begins at row `partner`; 0: there is one view.
  RoundRobin(int64_t n, int64_t partner, Rows local, int64_t owners)
      : padded_n_(round_up(n, kTile)),
        size_(block_rows(n)),
        blocks_((n + size_ - 1) / size_),
        slots_(blocks_ / 2 + 1),
        all_(local.begin == 0 && local.end == (partner ? partner : n)),
        owners_(owners),
        windows_(owners, all_ ? Window{slots_, 0} : Window{0, slots_}) {
    for (int64_t view : {0, 1})
      local_[view] = {(local.begin + view * partner) / kTile * kTile, round_up(local.end + view * partner, kTile)};
    if (!all_) {
      const int64_t blocks = round_up(2 * (local.end - local.begin), size_) / size_;
      while (blocks * cut_ < 2 * owners && cut_ < size_ / kTile) cut_ *= 2;
      return;
    }
    if (blocks_ / 2 < 2 * owners) cut_ = size_ / kTile;
    for (int64_t round = 0; round < 4; ++round)  // all others have the owners of one of these
      for (int64_t slot = 0; slot <= last(round); ++slot)
        for (int64_t i = 0; i < cut_; ++i) {
          Window& window = windows_[owner_of(round, slot, i)];
          window = {std::min(window.begin, slot), std::max(window.end, slot + 1)};
        }
  }

  int64_t pieces() const { return blocks_ * cut_; }
  bool local(Rows rows) const { return all_ || owner_of_local(rows) >= 0; }
  // f(R, C) for the parts of two pieces that have the pairs of local rows; rows first.
  template <class F>
  void for_each_part(Rows rows, Rows columns, F f) const {
    if (all_) return f(rows, columns);
    for_each_part(rows, [&](Rows some_rows) {
      for_each_part(columns, [&](Rows some_columns) {
        const bool above = rows.begin < columns.begin || some_rows.begin <= some_columns.begin;
        if (above && (local(some_rows) || local(some_columns))) f(some_rows, some_columns);
      });
    });
  }
  Rows rows(int64_t piece) const {  // none, where the last block is short
    const int64_t step = size_ / cut_;
    return {std::min(piece * step, padded_n_), std::min((piece + 1) * step, padded_n_)};
  }

  // What stands at a place of the owner's list; at some, which others own, kNothing does. After the pieces to
  // prepare a place is a number with the digits (i, slot, i + j, round), lowest first: to build such lists
  // would take many threads a visible part of a call.
  Task task(int64_t owner, int64_t at) const {
    const int64_t piece = owner * pieces() / owners_ + at, pieces_end = (owner + 1) * pieces() / owners_;
    if (piece < pieces_end) return {Task::kPrepare, piece, piece, -1, -1};
    at = piece - pieces_end;
    const Window window = windows_[owner];
    if (window.begin >= window.end) return {Task::kEnd};
    const auto digit = [&](int64_t base) {
      const int64_t value = at % base;
      at /= base;
      return value;
    };
    const int64_t i = digit(cut_), slot = window.begin + digit(window.end - window.begin),
                  j = digit(2 * cut_ - 1) - i, round = at;
    if (round >= blocks_) return {Task::kEnd};
    if (slot > last(round) || j < 0 || j >= cut_) return {Task::kNothing};
    const int64_t owner_of_pair = owner_of(round, slot, i);
    if (all_ && owner_of_pair != owner) return {Task::kNothing};
    const int64_t x = place(round, slot);
    // Half of the round. Modulo an odd number of blocks that is a product with slots_: twice slots_ is
    // blocks_ + 1, which is 1.
    const int64_t centre = blocks_ % 2 ? round * slots_ % blocks_ : round / 2;
    const auto on_ring = [&](int64_t block) { return block < blocks_ ? block : block - blocks_; };
    const auto [first, second] = std::minmax({on_ring(centre - x + blocks_), on_ring(centre + odd(round) + x)});
    if (first == second && i > j) return {Task::kNothing};
    Task task = {Task::kPair, first * cut_ + i, second * cut_ + j, round * cut_ + j, round * cut_ + i};
    if (!all_) {
      const int64_t owner_of_rows = std::max(owner_of_local(rows(task.one)), owner_of_local(rows(task.other)));
      if ((owner_of_rows < 0 ? owner_of_pair : owner_of_rows) != owner) return {Task::kNothing};
      if (owner_of_rows < 0) task.kind = Task::kPassed;
    }
    return task;
  }

 private:
  struct Window {  // of the slots of a round, all those of one owner
    int64_t begin, end;
  };
  // The pairs of a round are centre -+ x, 0 <= x <= last: from both ends of that range to its middle.
  int64_t odd(int64_t round) const { return blocks_ % 2 ? 0 : round % 2; }
  int64_t last(int64_t round) const { return (blocks_ - odd(round)) / 2; }
  int64_t place(int64_t round, int64_t slot) const { return slot % 2 ? last(round) - slot / 2 : slot / 2; }
  // A worker's pairs lie next to each other, so that most blocks stay in its cache for the next
  // round. Where workers do not divide the pairs, their borders move by half a pair.
  int64_t owner_of(int64_t round, int64_t slot, int64_t i) const {
    const int64_t pairs = (last(round) + 1) * cut_, pair = place(round, slot) * cut_ + i;
    return (2 * pair + round / 2 % 2) * owners_ / (2 * pairs);
  }
  // -1: nobody's, since none of the rows is local.
  int64_t owner_of_local(Rows rows) const {
    for (const Rows& view : local_)
      if (rows.begin < view.end && view.begin < rows.end)
        return (std::max(rows.begin, view.begin) - view.begin) * owners_ / (view.end - view.begin);
    return -1;
  }
  // f for what of the rows is local, and what is not, in order.
  template <class F>
  void for_each_part(Rows rows, F f) const {
    for (const Rows& view : local_)
      for (int64_t edge : {view.begin, view.end})
        if (rows.begin < edge && edge < rows.end) {
          f(Rows{rows.begin, edge});
          rows.begin = edge;
        }
    f(rows);
  }

  int64_t padded_n_, size_, blocks_, slots_;
  bool all_;  // rows are local
  int64_t cut_ = 1, owners_;
  Rows local_[2];  // of each view, whole tiles
  std::vector<Window> windows_;
};

// Runs, for blocks I <= J of the rows of z, or for pieces of them,
//   prepare(I)          once a block, before anything needs it,
//   pair(I, J, worker)  once a pair, one of which is local; it may write to the rows of both blocks,
//   finish(I)           once a local block, after the last pair with it.
// A worker goes through its own tasks; each waits until both of its blocks have their earlier pairs
// behind them: no barrier between rounds, no atomics on sums, no copy a thread. Tasks whose owner has
// no thread yet, or is late, are anybody's. Nobody holds a task while it waits, so the first one that
// is not begun can always run. After a task that throws nobody begins another.
template <class T, class Prepare, class Pair, class Finish>
void for_each_block_pair(const Embeddings<T>& z, Prepare prepare, Pair pair, Finish finish) {
  using Task = RoundRobin::Task;
  enum Outcome { kRan, kWaits, kOver };
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  constexpr int kPatience = 1000;  // waits before it does anybody's tasks, or else gives way to other threads
  const int64_t owners = std::min<int64_t>(torch::stable::get_num_threads(), workers_for(z.n, z.dim));
  const RoundRobin tasks(z.n, z.partner, z.local, owners);
  std::atomic<int64_t> arrived{0};
  std::atomic<bool> failed{false};
  std::vector<Counter> next(owners);          // where in its list each owner is
  std::vector<Counter> turn(tasks.pieces());  // pairs that a piece has behind it; -1: not prepared
  for (auto& pairs : turn) pairs.value.store(-1, std::memory_order_relaxed);
  const auto advance = [&](int64_t piece, int64_t pairs) {
    if (pairs == tasks.pieces() && tasks.local(tasks.rows(piece))) finish(tasks.rows(piece));
    turn[piece].value.store(pairs, std::memory_order_release);
  };
  const auto ready = [&](int64_t piece, int64_t pairs) {
    return turn[piece].value.load(std::memory_order_acquire) == pairs;
  };
  // Runs the owner's next task, unless that has to wait.
  const auto run_next = [&](int64_t owner, int64_t worker) {
    int64_t begin = next[owner].value.load(std::memory_order_relaxed);
    for (;;) {
      int64_t at = begin;
      Task task = tasks.task(owner, at);
      while (task.kind == Task::kNothing) task = tasks.task(owner, ++at);
      const bool over = task.kind == Task::kEnd;
      const bool runs = !over && ready(task.one, task.one_turn) && ready(task.other, task.other_turn);
      if (runs) ++at;
      if (at != begin && !next[owner].value.compare_exchange_weak(begin, at, std::memory_order_relaxed)) continue;
      if (!runs) return over ? kOver : kWaits;
      try {
        if (task.kind == Task::kPrepare) prepare(tasks.rows(task.one));
        else if (task.kind == Task::kPair)
          tasks.for_each_part(tasks.rows(task.one), tasks.rows(task.other),
                              [&](Rows rows, Rows columns) { pair(rows, columns, worker); });
        advance(task.one, task.one_turn + 1);
        if (task.other != task.one) advance(task.other, task.other_turn + 1);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
        throw;
      }
      return kRan;
    }
  };
  parallel(owners, [&](int64_t, int64_t) {
    const int64_t worker = arrived.fetch_add(1, std::memory_order_relaxed);
    for (int waits = 0; !failed.load(std::memory_order_relaxed);) {
      Outcome outcome = run_next(worker, worker);
      if (outcome == kRan) {
        waits = 0;
        continue;
      }
      bool over = outcome == kOver;
      const bool anybodys = over || waits > kPatience;
      for (int64_t owner = anybodys ? 0 : arrived.load(std::memory_order_relaxed);
           owner < owners && outcome != kRan; ++owner) {
        outcome = run_next(owner, worker);
        over = over && outcome == kOver;
      }
      if (over) return;
      if (outcome != kRan && waits++ > kPatience) sched_yield();
    }
  });
}

}  // namespace arec::cpu
