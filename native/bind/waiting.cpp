// Waiting for a borrow of this process to end, for borrow(timeout=...).
//
// One condition for the whole process: a Box is one word larger per waiter otherwise, and waits are rare.
// Ends look at `waiters` only. A waiter that is woken by another Box's end looks at its own and waits again.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>

#include <pthread.h>

#include "bind/box.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

// How long a waiter may miss a signal (Ctrl-C) that arrived in the main thread.
constexpr double kSignalCheckS = 0.05;

struct Ends {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t count = 0;      // ends while somebody waited; protected by `mutex`
  std::atomic<int> waiters{0};  // raised before the interpreter lock is given up, so no end is missed
};
alignas(Ends) std::byte storage[sizeof(Ends)];
Ends& ends() noexcept { return *std::launder(reinterpret_cast<Ends*>(storage)); }

std::uint32_t epoch = 1;  // raised in a forked child, before any other code runs there

void after_fork() {
  ++epoch;
  new (storage) Ends();  // the parent's waiters, and a mutex one of them may have held, are not here
}

}  // namespace

std::uint32_t process_epoch() noexcept { return epoch; }

double monotonic_s() noexcept {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void notify_ended() noexcept {
  if (ends().waiters.load(std::memory_order_relaxed) == 0) [[likely]]
    return;
  {
    const std::lock_guard held(ends().mutex);
    ++ends().count;
  }
  ends().changed.notify_all();
}

bool wait_for_end(double timeout_s) {
  // Still under the interpreter lock: whoever ends a borrow after this sees the waiter.
  Ends& all = ends();
  all.waiters.fetch_add(1, std::memory_order_relaxed);
  std::uint64_t seen = 0;
  {
    const std::lock_guard held(all.mutex);
    seen = all.count;
  }
  {
    const Unlocked unlocked;
    std::unique_lock held(all.mutex);
    const auto slice = std::chrono::duration<double>(std::min(timeout_s, kSignalCheckS));
    all.changed.wait_for(held, slice, [&] { return all.count != seen; });
  }
  all.waiters.fetch_sub(1, std::memory_order_relaxed);
  return PyErr_CheckSignals() == 0;
}

// Counted here and handed to the partition's counters now and then: an atomic add at every borrow would show.
void count_borrow(bool is_mutable) noexcept {
  static std::uint32_t pending[2] = {0, 0};  // protected by the interpreter lock
  constexpr std::uint32_t kBatch = 256;
  std::uint32_t& mine = pending[is_mutable ? 1 : 0];
  if (++mine < kBatch) return;
  if (const Runtime* runtime = current_runtime(); runtime != nullptr) {
    runtime->count(is_mutable ? heap::Counter::mutable_borrows : heap::Counter::borrows, mine);
  }
  mine = 0;
}

bool register_waiting(PyObject*) {
  new (storage) Ends();
  return pthread_atfork(nullptr, nullptr, after_fork) == 0;
}

}  // namespace drust::bind
