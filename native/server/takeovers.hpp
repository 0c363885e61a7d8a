// Queued tasks of this server that another one, which is idle, takes over (Ma et al., OSDI'24, section 4.2, as far as
// Python allows: a running frame cannot move).
//
//     taken      the entry is running by this process, though it has not begun: no worker takes it, and if this server
//                dies, so does whoever waits for it
//     named      the record names the thief: whoever joins asks that server from now on, and if it is lost, the record
//                is settled as lost, as of any task that was sent there
//     sent       as any task is sent to another server
//     finished   the thief has said that it has it: the entry is empty, the block that was sent is freed
//
// Only tasks whose records are in this partition may go: then this server's death ends their joiners too, and there
// is no third server that would have to learn where the task is now.
// A thief that does not answer may have the task or not. It is asked, until it answers or is known to be lost; a task
// that it does not have, and whose record is still pending, waits here again. One that was on its way to a server that
// was lost is lost with it: it may have run there.
// Rejected: the thief reads the queue and takes by compare-and-swap from afar (two round trips a task, and a queue
// that any peer may write); asking the record's home where it is another server (it may die between the two answers).
#pragma once

#include <chrono>
#include <vector>

#include "heap/heap.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

class Takeovers {
 public:
  Takeovers(heap::Heap& heap, tasks::Queue& queue, Peers& peers);

  // Gives the older half of what may go to `thief`, at most `most` tasks; returns how many it has. One round trip a
  // task. May wait for it, as long as any request does.
  std::size_t give(ServerId thief, std::uint32_t most);
  // Asks on about tasks whose thief did not answer. Returns how many are still open.
  std::size_t tend();

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    tasks::Held held;
    ServerId thief = 0;
    std::uint64_t epoch = 0;
    Clock::time_point sent;
  };

  void name(const GlobalPointer& record, ServerId server);
  void keep(const tasks::Held& held);
  void finish(const tasks::Held& held, bool with_children);
  [[nodiscard]] bool has_completed(const GlobalPointer& record) const;
  [[nodiscard]] bool go_on(const Open& open);

  heap::Heap& heap_;
  tasks::Queue& queue_;
  Peers& peers_;
  std::vector<Open> open_;  // one thread calls give() and tend()
};

}  // namespace drust::server
