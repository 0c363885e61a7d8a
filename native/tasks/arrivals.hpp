// Which records of a process have completed, in the order in which they did: so that one thread can wait for any of
// many tasks, and learns of all that ended meanwhile at once.
//
// Each process has a row in the partition: a futex, and a ring of the last kArrivalsKept records that were completed.
// Whoever completes a record adds it to the ring of the process that made it, and wakes whoever sleeps there: one
// system call for as many completions as come before the sleeper runs. Any number of readers follow the ring, each at
// a place of its own, and take nothing out of it.
//
// The ring is a hint. Who completes a record may die before it has told, and a reader that is slow is overtaken: then
// the reader is told that it missed something, and looks at all it waits for. An entry is the address of a record and
// the lap of the ring it was written in, in one word, so a half written or overwritten one is seen to be that.
//
// Rejected: a list through the records themselves (a record is freed by its joiner, who may come before the reader);
// FUTEX_WAITV (at most 128 words, and every one is looked at again at each wake).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/address.hpp"
#include "base/patience.hpp"
#include "base/status.hpp"
#include "heap/partition.hpp"

namespace drust::tasks {

class Arrivals {
 public:
  // A reader of the process's row: it sees what completes from now on.
  Arrivals(const heap::Partition& partition, heap::ProcessId process) noexcept;

  struct News {
    std::vector<Address> records;  // which have completed; some may be nobody's by now
    bool has_missed = false;       // there may be others
  };
  // What has completed since the last call; waits for it up to `timeout_ms`. Empty news when time ran out;
  // interrupted, closed. One thread at a time.
  Result<News> wait(std::uint32_t timeout_ms);

  // By any thread: wait() is closed from now on.
  void stop() noexcept;

  // By whoever completed a record: of this partition, made by `process`. Anybody who wears its slot by now is told in
  // its place, and does not know the record.
  static void tell(const heap::Partition& partition, heap::ProcessId process, Address record) noexcept;

 private:
  const heap::Partition& partition_;
  const std::uint32_t slot_;
  std::uint64_t next_;             // the ticket to be read next
  Patience patience_;
  bool is_stuck_ = false;          // its entry was not written at the last look
  std::atomic<bool> is_stopped_{false};
};

}  // namespace drust::tasks
