// The ring in shared memory:
//
//     | page: futex of pushes, sleepers, head, tail | entries (128 B each) |
//
// Head and tail are tickets and hints: everything from head to tail is looked at, an entry's own word
// decides. Whoever finds the tail's entry taken moves the tail on, so a stopped or killed producer, or a task
// that runs for hours, delays nobody. Every sleep ends after kWaitSliceMs at the latest, which covers a waker
// that was killed before it woke.
#include "tasks/queue.hpp"

#include <algorithm>
#include <bit>
#include <unistd.h>

#include "base/ensure.hpp"
#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "base/limits.hpp"
#include "base/patience.hpp"

namespace drust::tasks {
namespace {

using SharedWord = std::atomic<std::uint64_t>;

// phase (3 bits) | ticket (21) | process slot (16) | generation (24). An empty entry keeps the ticket it last
// had, so a producer that stopped before its compare-and-swap does not succeed with a ticket of long ago.
enum class Phase : std::uint8_t { empty, reserved, ready, running };
constexpr std::uint64_t word_of(Phase phase, std::uint64_t ticket, heap::ProcessId process) noexcept {
  return static_cast<std::uint64_t>(phase) | ((ticket & 0x1fffffU) << 3) |
         (std::uint64_t{process.slot & 0xffffU} << 24) |
         (std::uint64_t{process.generation & 0xffffffU} << 40);
}
constexpr Phase phase_of(std::uint64_t word) noexcept { return static_cast<Phase>(word & 7U); }
constexpr std::uint64_t ticket_of(std::uint64_t word) noexcept { return (word >> 3) & 0x1fffffU; }
constexpr heap::ProcessId process_of(std::uint64_t word) noexcept {
  return {static_cast<std::uint32_t>(word >> 24) & 0xffffU, static_cast<std::uint32_t>(word >> 40)};
}

struct Head {
  std::atomic<std::uint32_t> pushes;    // futex, also of Partition::close(); any process
  std::atomic<std::uint32_t> sleepers;  // at least as many as sleep on it; any process
  // 1: a consumer looks at `pushes` before it sleeps. A push that takes the 1 away wakes nobody else. Of a dead
  // process: one push wakes nobody, and what it brought is found at the end of a sleeper's slice.
  std::atomic<std::uint32_t> lookers;
  alignas(64) SharedWord head;          // ticket; nothing ready lies before it
  alignas(64) SharedWord tail;          // ticket the next push begins to look at
  alignas(64) SharedWord idle[kProcessesMax / 64];  // a bit a process slot that waits; that process, its reaper
};

constexpr std::uint64_t kBound = 1ULL << 32;  // of Slot::retries, whose low half is the number

struct alignas(128) Slot {
  SharedWord state;   // compare-and-swap
  SharedWord ticket;  // this to `retries`: written by the producer while `reserved`
  SharedWord task[3];
  SharedWord record[3];
  SharedWord retries;
  SharedWord fate;           // protocol::TaskRecord; compare-and-swap by the worker, then by its reaper
  SharedWord completion[3];  // by the worker, before `fate` says Returned
  SharedWord kept_until_us;  // of now_us(), 0: not kept. A hint: the producer, while `reserved`; offer()
};
static_assert(sizeof(Slot) == 128 && sizeof(Head) <= 4096);

using protocol::TaskEvent;
using protocol::TaskPhase;
using protocol::TaskRecord;

std::uint64_t now_us() noexcept {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(since).count());
}
Deadline deadline_at(std::uint64_t us) noexcept { return Deadline(std::chrono::microseconds(us)); }

constexpr std::uint64_t word_of(const TaskRecord& fate) noexcept { return std::bit_cast<std::uint64_t>(fate); }
TaskRecord fate_of(const Slot& slot) noexcept { return std::bit_cast<TaskRecord>(slot.fate.load()); }

// One event of a task, in one compare-and-swap. False if the protocol refuses it.
bool advance(Slot& slot, TaskEvent event) noexcept {
  std::uint64_t seen = slot.fate.load();
  while (true) {
    const protocol::TaskStep step = protocol::apply(std::bit_cast<TaskRecord>(seen), event);
    if (!step.ok) return false;
    if (slot.fate.compare_exchange_weak(seen, word_of(step.record))) return true;
  }
}
static_assert(4096 + kQueueEntries * sizeof(Slot) == heap::Partition::kQueueAreaBytes);

void put(SharedWord (&words)[3], const GlobalPointer& pointer) noexcept {
  words[0].store(pointer.address.raw(), std::memory_order_relaxed);
  words[1].store(pointer.colour, std::memory_order_relaxed);
  words[2].store(pointer.extent_bytes, std::memory_order_relaxed);
}
GlobalPointer get(const SharedWord (&words)[3]) noexcept {
  return {Address(words[0].load(std::memory_order_relaxed)), words[1].load(std::memory_order_relaxed),
          words[2].load(std::memory_order_relaxed)};
}

// Whether a task was lent what its spawner had on loan itself.
bool has_relent(const heap::Partition& partition, const GlobalPointer& task) noexcept {
  const Result<heap::Block> call = partition.find(task.address, task.colour);
  if (!call.ok()) return false;
  return std::ranges::any_of(call.value().children(), [](const heap::ChildPointer& child) {
    return (child.flags & heap::ChildPointer::kRelent) != 0;
  });
}

}  // namespace

class Queue::Ring {
 public:
  explicit Ring(heap::Heap& heap)
      : partition_(heap.partition()), self_(heap.process()), area_(partition_.queue_area()) {}

  [[nodiscard]] Head& head() const noexcept { return *reinterpret_cast<Head*>(area_); }
  [[nodiscard]] Slot& slot(std::uint64_t ticket) const noexcept {
    return reinterpret_cast<Slot*>(area_ + 4096)[ticket % kQueueEntries];
  }

  void lower_head(std::uint64_t ticket) noexcept {
    std::uint64_t seen = head().head.load();
    while (ticket < seen && !head().head.compare_exchange_weak(seen, ticket)) {
    }
  }

  void set_idle(bool is_idle) noexcept {
    SharedWord& word = head().idle[self_.slot / 64];
    const std::uint64_t bit = 1ULL << (self_.slot % 64);
    static_cast<void>(is_idle ? word.fetch_or(bit) : word.fetch_and(~bit));
  }

  // reserved -> ready, and somebody hears of it.
  void make_ready(Slot& slot, std::uint64_t ticket) noexcept {
    slot.state.store(word_of(Phase::ready, ticket, self_));
    kill_point("queue.push.ready");
    lower_head(ticket);
    tell_one();
  }

  void tell_one() noexcept {
    head().pushes.fetch_add(1);
    if (head().lookers.load() != 0 && head().lookers.exchange(0) != 0) return;
    if (head().sleepers.load() > 0) futex_wake(head().pushes, 1);
  }

  // Whether a push came while this process looked, as the only one of its server that does.
  bool look(std::uint32_t pushes) noexcept {
    thread_local Patience of_workers;
    std::uint32_t expected = 0;
    if (!head().lookers.compare_exchange_strong(expected, 1)) return false;
    kill_point("queue.take.looking");
    if (of_workers.wait([&] { return head().pushes.load() != pushes; })) {
      head().lookers.exchange(0);  // usually the push has
      return true;
    }
    return head().lookers.exchange(0) == 0;  // then a push counts on this process
  }

  // Past entries at the head that hold nothing ready. A late producer either lowers the head itself or is
  // seen here: both write before they read.
  void advance_head(std::uint64_t from) noexcept {
    const std::uint64_t tail = head().tail.load();
    std::uint64_t ticket = from;
    while (ticket < tail) {
      const Phase phase = phase_of(slot(ticket).state.load());
      if (phase == Phase::ready || phase == Phase::reserved) return;
      std::uint64_t expected = ticket;
      if (!head().head.compare_exchange_strong(expected, ticket + 1)) return;
      const Phase after = phase_of(slot(ticket).state.load());
      if (after == Phase::ready || after == Phase::reserved) {
        lower_head(ticket);
        return;
      }
      ++ticket;
    }
  }

  Entry read(const Slot& slot, std::uint64_t ticket) const noexcept {
    return {static_cast<std::uint32_t>(ticket % kQueueEntries), slot.ticket.load(std::memory_order_relaxed),
            get(slot.task), get(slot.record), self_};
  }

  // 0: it is not kept, or no longer.
  static std::uint64_t kept_until(const Slot& slot) noexcept {
    const std::uint64_t until_us = slot.kept_until_us.load(std::memory_order_relaxed);
    return until_us != 0 && until_us > now_us() ? until_us : 0;
  }

  // `kept_until_us`: when the first of those that it has passed by is kept no longer; 0: none.
  std::optional<Entry> try_take(std::uint64_t& kept_until_us) noexcept {
    kept_until_us = 0;
    const std::uint64_t first = head().head.load();
    const std::uint64_t last = std::min(head().tail.load(), first + kQueueEntries);
    for (std::uint64_t ticket = first; ticket < last; ++ticket) {
      Slot& place = slot(ticket);
      std::uint64_t seen = place.state.load();
      if (phase_of(seen) != Phase::ready) continue;
      if (const std::uint64_t until_us = kept_until(place); until_us != 0) {
        kept_until_us = std::min(kept_until_us == 0 ? until_us : kept_until_us, until_us);
        continue;
      }
      if (!place.state.compare_exchange_strong(seen, word_of(Phase::running, ticket_of(seen), self_)))
        continue;
      kill_point("queue.take.running");
      const Entry entry = read(place, ticket);
      const bool starts = advance(place, TaskEvent::Start);
      ensure(starts, "a waiting task had a fate");
      advance_head(first);
      return entry;
    }
    advance_head(first);
    return std::nullopt;
  }

  heap::Partition& partition_;
  const heap::ProcessId self_;
  std::byte* const area_;
};

Queue::Queue(heap::Heap& heap) : ring_(std::make_unique<Ring>(heap)) {}
Queue::~Queue() = default;

Result<std::uint64_t> Queue::push(const GlobalPointer& task, const GlobalPointer& record, const Terms& terms) {
  Ring& ring = *ring_;
  SharedWord& tail = ring.head().tail;
  std::uint32_t taken = 0;
  while (taken < kQueueEntries) {
    std::uint64_t ticket = tail.load();
    Slot& slot = ring.slot(ticket);
    std::uint64_t seen = slot.state.load();
    if (phase_of(seen) != Phase::empty) {
      ++taken;
      tail.compare_exchange_strong(ticket, ticket + 1);
      continue;
    }
    if (!slot.state.compare_exchange_strong(seen, word_of(Phase::reserved, ticket, ring.self_))) continue;
    kill_point("queue.push.reserved");
    std::uint64_t expected = ticket;
    tail.compare_exchange_strong(expected, ticket + 1);
    slot.ticket.store(ticket, std::memory_order_relaxed);
    put(slot.task, task);
    put(slot.record, record);
    slot.retries.store(terms.retries | (terms.is_bound ? kBound : 0), std::memory_order_relaxed);
    slot.kept_until_us.store(terms.kept_us == 0 ? 0 : now_us() + terms.kept_us, std::memory_order_relaxed);
    slot.fate.store(word_of(TaskRecord{}), std::memory_order_relaxed);
    kill_point("queue.push.written");
    ring.make_ready(slot, ticket);
    return ticket;
  }
  return Status(Code::full, "all " + std::to_string(kQueueEntries) + " entries of the task queue are taken");
}

// Another's entry may have come to that place: then that one is kept no longer either, which costs a thread.
void Queue::offer(std::uint64_t ticket) noexcept {
  if (ring_->slot(ticket).kept_until_us.exchange(0) != 0) ring_->tell_one();
}

Result<Entry> Queue::take(std::uint32_t timeout_ms) {
  Ring& ring = *ring_;
  Head& head = ring.head();
  const Deadline deadline = deadline_in(timeout_ms);
  while (true) {
    if (ring.partition_.is_closed()) return Status(Code::closed, "the runtime has been shut down");
    const std::uint32_t pushes = head.pushes.load();
    std::uint64_t kept_until_us = 0;
    if (const std::optional<Entry> entry = ring.try_take(kept_until_us)) {
      if (kept_until_us != 0) ring.tell_one();  // this process was to see to those that are kept
      return *entry;
    }
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) return Status(Code::timed_out, "no task arrived");
    ring.set_idle(true);
    Wake wake = Wake::changed;
    if (kept_until_us != 0 || !ring.look(pushes)) {
      Deadline until = std::min(deadline, now + std::chrono::milliseconds(kWaitSliceMs));
      if (kept_until_us != 0) until = std::min(until, deadline_at(kept_until_us));
      head.sleepers.fetch_add(1);
      wake = futex_wait(head.pushes, pushes, until);
      head.sleepers.fetch_sub(1);
    }
    ring.set_idle(false);
    if (wake == Wake::interrupted) return Status(Code::interrupted, "a signal arrived");
  }
}

void Queue::forbid_rollback(const Entry& entry) noexcept {
  static_cast<void>(advance(ring_->slot(entry.index), TaskEvent::ForbidRollback));
}

bool Queue::is_forbidden(const Entry& entry) const noexcept { return fate_of(ring_->slot(entry.index)).forbidden; }

bool Queue::returned(const Entry& entry, const GlobalPointer& completion) noexcept {
  Slot& slot = ring_->slot(entry.index);
  const bool is_ours = slot.state.load() == word_of(Phase::running, entry.ticket, entry.worker);
  if (!is_ours || fate_of(slot).phase != TaskPhase::Running) return false;
  put(slot.completion, completion);
  kill_point("queue.return.written");
  const bool is_decided = advance(slot, TaskEvent::Return);
  kill_point("queue.return.decided");
  return is_decided;
}

void Queue::finish(const Entry& entry) noexcept {
  kill_point("queue.finish.before");
  std::uint64_t expected = word_of(Phase::running, entry.ticket, entry.worker);
  ring_->slot(entry.index).state.compare_exchange_strong(expected, word_of(Phase::empty, entry.ticket, {}));
  kill_point("queue.finish.after");
}

std::optional<Entry> Queue::withdraw(const GlobalPointer& record) noexcept {
  Ring& ring = *ring_;
  const std::uint64_t first = ring.head().head.load();
  const std::uint64_t last = std::min(ring.head().tail.load(), first + kQueueEntries);
  for (std::uint64_t ticket = last; ticket > first;) {
    Slot& slot = ring.slot(--ticket);
    std::uint64_t seen = slot.state.load();
    if (phase_of(seen) != Phase::ready || !(get(slot.record) == record)) continue;
    if (!slot.state.compare_exchange_strong(seen, word_of(Phase::running, ticket_of(seen), ring.self_))) continue;
    const Entry entry = ring.read(slot, ticket);
    // The words were read before the entry was ours, and may have been two tasks' halves.
    if (!(entry.record == record)) {
      ring.make_ready(slot, entry.ticket);
      continue;
    }
    kill_point("queue.withdraw.running");
    ensure(advance(slot, TaskEvent::Start), "a waiting task had a fate");
    return entry;
  }
  return std::nullopt;
}

std::vector<Held> Queue::take_unbound(std::uint32_t most) {
  Ring& ring = *ring_;
  // Read before the entry is this process's, the words may be two tasks' halves: so they are read again.
  const auto may_go = [&](const Slot& slot) {
    return (slot.retries.load(std::memory_order_relaxed) & kBound) == 0 && ring.kept_until(slot) == 0 &&
           ring.partition_.is_local(get(slot.record).address);
  };
  const std::uint64_t first = ring.head().head.load();
  const std::uint64_t last = std::min(ring.head().tail.load(), first + kQueueEntries);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> waiting;  // ticket of the entry, its word
  for (std::uint64_t ticket = first; ticket < last; ++ticket) {
    const std::uint64_t seen = ring.slot(ticket).state.load();
    if (phase_of(seen) == Phase::ready && may_go(ring.slot(ticket))) waiting.emplace_back(ticket, seen);
  }
  const std::size_t spare = waiting.size() > idle() ? waiting.size() - idle() : 0;
  std::vector<Held> taken;
  for (const auto& [ticket, word] : waiting) {
    if (taken.size() >= std::min<std::size_t>((spare + 1) / 2, most)) break;
    Slot& slot = ring.slot(ticket);
    std::uint64_t seen = word;
    if (!slot.state.compare_exchange_strong(seen, word_of(Phase::running, ticket_of(seen), ring.self_))) continue;
    if (may_go(slot)) {
      taken.push_back(Held{ring.read(slot, ticket), fate_of(slot), {}, static_cast<std::uint32_t>(slot.retries.load())});
    } else {
      ring.make_ready(slot, slot.ticket.load());
    }
  }
  return taken;
}

std::vector<Held> Queue::reap(heap::ProcessId dead) {
  Ring& ring = *ring_;
  ensure(!ring.partition_.is_alive(dead), "reaping a process that lives");
  ring.head().idle[dead.slot / 64].fetch_and(~(1ULL << (dead.slot % 64)));
  std::vector<Held> held;
  for (std::uint64_t index = 0; index < kQueueEntries; ++index) {
    Slot& slot = ring.slot(index);
    std::uint64_t seen = slot.state.load();
    const Phase phase = phase_of(seen);
    if (process_of(seen) != dead) continue;
    if (phase == Phase::reserved) {
      slot.state.compare_exchange_strong(seen, word_of(Phase::empty, ticket_of(seen), {}));
    } else if (phase == Phase::running) {
      Held& found = held.emplace_back(Held{ring.read(slot, index), fate_of(slot), get(slot.completion),
                                           static_cast<std::uint32_t>(slot.retries.load())});
      found.entry.worker = dead;
    }
  }
  std::sort(held.begin(), held.end(),
            [](const Held& a, const Held& b) { return a.entry.ticket < b.entry.ticket; });
  return held;
}

void Queue::decide(const Held& held, const TaskRecord& fate) noexcept {
  ring_->slot(held.entry.index).fate.store(word_of(fate));
}

void Queue::run_again(const Held& held) noexcept {
  Slot& slot = ring_->slot(held.entry.index);
  if (held.fate.phase != TaskPhase::Queued) slot.retries.fetch_sub(1);
  slot.fate.store(word_of(TaskRecord{}));
  ring_->make_ready(slot, held.entry.ticket);
}

void Queue::orphan(ServerId lost, std::uint16_t incarnation, std::vector<GlobalPointer>& queued,
                   std::vector<Entry>& running) noexcept {
  Ring& ring = *ring_;
  for (std::uint64_t index = 0; index < kQueueEntries; ++index) {
    Slot& slot = ring.slot(index);
    std::uint64_t seen = slot.state.load();
    const auto is_ours = [&] {
      const GlobalPointer record = get(slot.record);
      return record.address.server() == lost && incarnation_of(record.colour) <= incarnation;
    };
    if (phase_of(seen) == Phase::ready && is_ours()) {
      if (slot.state.compare_exchange_strong(seen, word_of(Phase::reserved, ticket_of(seen), ring.self_))) {
        if (is_ours()) {
          queued.push_back(get(slot.task));
          slot.state.store(word_of(Phase::empty, ticket_of(seen), {}));
        } else {  // another task's by then
          ring.make_ready(slot, slot.ticket.load());
        }
        continue;
      }
    }
    if (phase_of(seen) != Phase::running || !is_ours() || !has_relent(ring.partition_, get(slot.task))) continue;
    const TaskPhase phase = fate_of(slot).phase;
    if (phase == TaskPhase::Returned || phase == TaskPhase::Settled) continue;
    // Before its worker has said so it may still be waiting: it is met again at the next look.
    if (phase != TaskPhase::Queued) static_cast<void>(advance(slot, TaskEvent::LenderLost));
    Entry& entry = running.emplace_back(ring.read(slot, slot.ticket.load(std::memory_order_relaxed)));
    entry.worker = process_of(seen);
    if (slot.state.load() != seen) running.pop_back();  // it has ended meanwhile
  }
}

bool Queue::knows(const GlobalPointer& record) const noexcept {
  for (std::uint64_t index = 0; index < kQueueEntries; ++index) {
    const Slot& slot = ring_->slot(index);
    const Phase phase = phase_of(slot.state.load());
    if ((phase == Phase::ready || phase == Phase::running) && get(slot.record) == record) return true;
  }
  return false;
}

void Queue::each_named(const std::function<void(Address)>& visit) const {
  for (std::uint64_t index = 0; index < kQueueEntries; ++index) {
    const Slot& slot = ring_->slot(index);
    if (phase_of(slot.state.load()) == Phase::empty) continue;
    visit(get(slot.task).address);
    visit(get(slot.completion).address);
  }
}

std::uint32_t Queue::idle() const noexcept {
  int count = 0;
  for (const SharedWord& word : ring_->head().idle) count += std::popcount(word.load(std::memory_order_relaxed));
  return static_cast<std::uint32_t>(count);
}

std::uint32_t Queue::ready(std::uint32_t most) const noexcept {
  const std::uint64_t first = ring_->head().head.load();
  const std::uint64_t last = std::min(ring_->head().tail.load(), first + kQueueEntries);
  std::uint32_t count = 0;
  for (std::uint64_t ticket = first; ticket < last && count < most; ++ticket) {
    count += phase_of(ring_->slot(ticket).state.load(std::memory_order_relaxed)) == Phase::ready ? 1U : 0U;
  }
  return count;
}

std::uint32_t Queue::running() const noexcept {
  std::uint32_t count = 0;
  for (std::uint64_t index = 0; index < kQueueEntries; ++index) {
    count += phase_of(ring_->slot(index).state.load(std::memory_order_relaxed)) == Phase::running ? 1U : 0U;
  }
  return count;
}

}  // namespace drust::tasks
