// The server's attendant of shared objects: one thread that answers processes of other servers when their turn has
// come, and frees what nobody holds any more. It sleeps on the partition's bell, which whoever causes either rings;
// a server whose objects are used by its own host alone never wakes it but for frees.
//
// A waiter is answered within kSharedReplyMs, if only with "not yet": so its connection is never silent for longer
// than a peer may be, and a peer that has gone is noticed. Between two requests it keeps its place in the line; one
// that does not ask again within kSharedLapseMs loses it.
// Rejected: a thread a waiter (thousands of them may wait), and answering from the serving threads (they sleep in
// epoll, not on a futex).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "heap/partition.hpp"
#include "server/operations.hpp"

namespace drust::server {

class Attendant {
 public:
  struct Asker {
    std::uint32_t loop = 0;
    std::uint64_t connection = 0;
    friend bool operator==(const Asker&, const Asker&) noexcept = default;
  };
  using Reply = std::function<void(const Asker&, Answer)>;

  Attendant(heap::Partition& partition, Operations& operations, Reply reply);
  ~Attendant();
  Attendant(const Attendant&) = delete;
  Attendant& operator=(const Attendant&) = delete;

  void start();
  void stop() noexcept;  // joins
  // Any thread. The one who waits has gone: nobody is answered.
  void put(const Asker& asker, const SharedWait& wait);
  void cancel(const Asker& asker);

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    Asker asker;
    SharedWait wait;
    Clock::time_point due;
  };
  struct Answered {  // with "not yet"
    SharedWait wait;
    Clock::time_point lapses;
  };
  void run();
  void look(Clock::time_point now);
  [[nodiscard]] Clock::time_point next_due(Clock::time_point now);

  heap::Partition& partition_;
  Operations& operations_;
  const Reply reply_;
  std::atomic<bool> is_stopping_{false};  // set once, and the bell is rung
  std::thread thread_;
  std::uint32_t marks_seen_ = 0;        // its thread only, as the next
  Clock::time_point next_unheld_look_;  // so that a burst of frees is one look
  std::mutex mutex_;  // protects the three below; not held while anything is answered
  std::vector<Asker> cancelled_;
  std::vector<Waiting> waiting_;
  std::vector<Answered> answered_;
};

}  // namespace drust::server
