// Completions on their way to other servers, while their worker goes on with the next task.
//
// A worker that has nothing else to do takes a completion home itself: no thread is between. One that has, because
// tasks wait, leaves it here: a thread for each server that has records sends what has gathered, in one message, and
// while it waits for the answer the next gather. The task's entry keeps each until it has arrived, as it always does:
// where the process dies, its reaper goes on.
//
// Rejected: waiting some time for more to come. The first would come later than it must, and the answer to one message
// is time enough.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "heap/heap.hpp"
#include "server/forks.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

class Homeward {
 public:
  Homeward(heap::Heap& heap, tasks::Queue& queue, Peers& peers) noexcept : heap_(heap), queue_(queue), peers_(peers) {}
  ~Homeward();
  Homeward(const Homeward&) = delete;
  Homeward& operator=(const Homeward&) = delete;

  // Takes a returned task's completion over, to deliver it and finish its entry. False where the caller should: the
  // record is here, nothing waits to be run, or too much is on its way already.
  [[nodiscard]] bool take(const tasks::Entry& entry, const GlobalPointer& completion);
  // Waits for answers under way, not for servers that are silent. False: some entries still keep their completions, for
  // this process's reaper.
  bool close() noexcept;

 private:
  struct Item {
    tasks::Entry entry;
    GlobalPointer completion;
  };
  struct Road {
    std::deque<Item> waiting;
    bool is_busy = false;
    bool is_silent = false;  // it does not answer, and nobody wants to wait any more
    std::condition_variable changed;
    std::thread thread;
  };
  void run(ServerId server, Road& road);

  heap::Heap& heap_;
  tasks::Queue& queue_;
  Peers& peers_;
  const std::uint32_t generation_ = fork_generation();
  std::mutex mutex_;  // protects the rest; never held while a peer is waited for
  bool is_closed_ = false;
  std::map<ServerId, std::unique_ptr<Road>> roads_;  // none goes before the end
};

}  // namespace drust::server
