// What a dead process leaves, and who gets it: its tasks' fates are decided and reported, its lends wait for the
// tasks that have them, its pins and half-made blocks go, its arena is taken over, what it owned is freed.
//
//     reap(p):  declared dead -> records it waited on are dropped -> its tasks: run again, delivered, lost, or dying
//               -> copies, arena -> blocks, unless something of it is still on loan
//     tend():   what had to wait: a task is reported lost only when all that was lent below it has ended; what the
//               dead process owned is freed only when nobody has any of it on loan
//
// Every order here is so that a block has one owner at each step; server/deliver.hpp says what becomes of
// completions. Rejected: freeing what was lent at once (a task on another server would read a reused address and be
// refused by its colour: safe, but a loss of the survivors' work), and a shared list of orphans (this process's
// death is the partition's).
//
// One thread calls reap() and tend(): the server's reaper. They may wait for other servers.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "cache/copies.hpp"
#include "heap/heap.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

class Reaper {
 public:
  Reaper(heap::Heap& heap, tasks::Queue& queue, cache::Copies& copies, Peers& peers);

  // `reason`: how it ended, for whoever joins its tasks. Returns how many tasks it was running.
  std::size_t reap(heap::ProcessId dead, std::uint32_t pid, const std::string& reason);
  // Goes on with what earlier calls could not finish. Returns how many dead processes still have something out.
  std::size_t tend();
  // That server is lost, up to that incarnation: nobody waits for its tasks. Server::fail_records() came first.
  void lose(ServerId lost, std::uint16_t incarnation);
  // Goes on until nothing that was lent on through a lost server is in a task here. Those that wait go at once.
  struct Fence {
    bool is_closed = false;           // it is so
    std::vector<std::uint32_t> pids;  // else: workers that run such a task, to be ended. None while others are waited for
  };
  Fence fence();

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {  // a record of the dead process, dropped by now, whose task has not ended
    GlobalPointer record;
    ServerId target = 0;
    std::uint64_t under = 0;
    bool has_lends = false;
    bool is_unsure = false;  // the call may not have arrived: its block is still here
    GlobalPointer call;
    Clock::time_point since;
  };
  struct Dying {
    tasks::Held held;
    std::uint32_t below = 0;
  };
  struct Loss {
    ServerId server = 0;
    std::uint16_t incarnation = 0;
  };
  struct Report {
    tasks::Held held;
    tasks::RecordState state = tasks::RecordState::done;
    GlobalPointer block;
  };
  struct Estate {
    heap::ProcessId dead;
    std::uint32_t pid = 0;
    std::string reason;
    std::vector<Waiting> waiting;
    std::vector<Dying> dying;
    std::vector<Report> reports;  // that their receivers have not got yet
    std::vector<ServerId> untold;  // servers at whose shared objects it may have waited or held something
    Clock::time_point next_telling;
    std::vector<std::uint64_t> lenders;  // its tasks, by the ids of their entries, that had lent on mutably
    bool is_freed = false;
  };

  void drop_records(Estate& estate);
  void settle_tasks(Estate& estate, const std::vector<tasks::Held>& held);
  // Before the last lend below has ended, or the worker is lost without one.
  void look_below(const Estate& estate, Dying& dying);
  void report(Estate& estate, const tasks::Held& held, bool is_poisoned);
  // False: not yet.
  [[nodiscard]] bool send(const Report& report);
  void forget_task(const tasks::Held& held);
  [[nodiscard]] bool is_orphan(const GlobalPointer& record) const noexcept;
  [[nodiscard]] bool has_ended(const Estate& estate, Waiting& waiting);
  void lose_undelivered(const Waiting& waiting);
  void forget_sent(const Estate& estate, const Waiting& waiting);
  void free_estate(const Estate& estate);
  void bury(Estate& estate);
  [[nodiscard]] bool tell(const Estate& estate, ServerId server);
  [[nodiscard]] bool go_on(Estate& estate);
  void send_frees(const std::vector<GlobalPointer>& remote);

  heap::Heap& heap_;
  tasks::Queue& queue_;
  cache::Copies& copies_;
  Peers& peers_;
  std::vector<Estate> estates_;  // the reaper's thread alone, as the next one
  std::vector<Loss> losses_;     // of every server number the last
};

}  // namespace drust::server
