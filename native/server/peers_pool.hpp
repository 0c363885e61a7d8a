// How Peers asks: which connection a request leaves on, when it is tried again, what is counted, and how
// frees travel. Peers itself (peers.cpp) says what each call sends and where its reply goes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "server/call.hpp"
#include "server/forks.hpp"
#include "server/free_batches.hpp"
#include "server/peers.hpp"
#include "server/pool.hpp"

namespace drust::server {

// What one hand-over has put on the backup server, to be settled once it has arrived.
struct HandOver {
  std::uint64_t stamp = 0;
  std::vector<Address> superseded;  // an older version of them is there too
};

class Peers::Pool {
 public:
  Pool(heap::Heap& given, PeersOptions options)
      : heap(given),
        partition(given.partition()),
        counts_questions_(options.counts_questions),
        has_sweeper_(options.has_sweeper),
        connections_(partition, std::move(options.token), options.timeout_ms, std::move(options.dial)) {
    heap.set_replica_hook([this](Address block, std::uint64_t stamp) { drop_replica_later(block, stamp); });
    heap.set_made_hook([this](const GlobalPointer& version) { free_later(version, wire::FreeItem::kMade); });
  }
  ~Pool() {
    close();
    heap.set_replica_hook({});
    heap.set_made_hook({});
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // One request, with the frees that wait for that server ahead of it. Any thread, several at once.
  Status ask(ServerId server, Call& call);
  // Several requests that may be repeated, as one message; what became of each, in their order.
  std::vector<Status> ask_all(ServerId server, std::span<Call> calls);
  void free_later(const GlobalPointer& remote, std::uint64_t flags);  // wire::FreeItem's
  void free_tied_later(const GlobalPointer& remote, const GlobalPointer& successor);
  bool flush();
  void close() noexcept;

  // replicator.cpp: the sending side of replication. Nothing here costs a message while this server has no
  // backup.
  //
  // What the children of `parent` name in this partition is put on the backup server, with all that it owns
  // here, unless that version is there already: one commit, one round trip. A backup that is lost is waited
  // for until there is another, or the engine says that there is none.
  Status replicate(const heap::Block& parent, HandOver& hand_over);
  // It has arrived: versions before those just sent are needed by nobody.
  void settle(const HandOver& hand_over);
  // One commit, whatever its size.
  Status send_replicas(ServerId backup, std::span<const Replica> replicas, std::uint64_t stamp);
  void drop_replica_later(Address block, std::uint64_t stamp);
  void confirm_later(const GlobalPointer& value);
  // Whether this is a child's copy of its parent's object.
  [[nodiscard]] bool is_forked() const noexcept { return fork_generation() != generation_; }

  heap::Heap& heap;
  heap::Partition& partition;

 private:
  using Clock = std::chrono::steady_clock;
  // Frees that may not have arrived: their connection ended before an answer behind them came. Sent again, while
  // that server, or one in its place, may be there.
  struct Unanswered {
    Clock::time_point due;
    ServerId server;
    std::uint64_t epoch;
    std::vector<wire::FreeItem> frees;
  };
  // Frees that have arrived, but that a server may not have passed on to its backup before it was lost.
  struct Unsure {
    Clock::time_point sent;
    ServerId server;
    std::uint64_t epoch;
    std::vector<wire::FreeItem> frees;
  };

  // `epoch_before`: of the server's row, read before the call.
  Status ask_once(ServerId server, Call& call, std::uint64_t epoch_before);
  // Until another server answers in the place of the lost one that had `epoch`. False: none will, or not in
  // time.
  bool await_successor(ServerId server, std::uint64_t epoch, Clock::time_point deadline) const;
  [[nodiscard]] bool has_successor(ServerId server, std::uint64_t epoch) const;
  void queue_frees(ServerId destination, std::initializer_list<wire::FreeItem> items);
  void start_sweeper();  // with the mutex held
  void remember(ServerId server, std::uint64_t epoch, std::vector<wire::FreeItem> frees);
  void repeat_unsure();
  // `tried`: how long it took to find out.
  void keep(ServerId server, std::uint64_t epoch, std::vector<wire::FreeItem> frees, Clock::duration tried);
  void add_again(ServerId server, std::span<const wire::FreeItem> frees);
  // Queues again what is due by then.
  void repeat_unanswered(Clock::time_point due);
  [[nodiscard]] bool is_counted(const Call& call) const;
  void count_message(const Call& call, std::size_t frees) const;
  void count_frees(std::size_t frees) const;
  void count_bytes(const Call& call, std::size_t frees) const;
  void have_arrived(std::span<const wire::FreeItem> frees) noexcept;
  // Until somebody has answered behind `batch`, or, without patience, until it is in the kernel's hands. False when
  // there was nothing to send, or nobody to send it to.
  enum class Patience : std::uint8_t { answer, none };
  bool send_batch(ServerId server, Patience patience);
  void send_all(Patience patience);
  // The sweeper's thread: sends what no request took along.
  void sweep();

  const std::uint32_t generation_ = fork_generation();
  const bool counts_questions_;
  const bool has_sweeper_;
  ConnectionPool connections_;  // has its own lock, as the next one
  FreeBatches frees_;
  std::mutex mutex_;  // protects the members below; never held while a peer is waited for
  std::condition_variable changed_;
  bool has_full_batch_ = false;
  bool is_closed_ = false;
  bool is_sweeping_ = false;   // the housekeeping thread has frees in its hands
  std::deque<Unsure> unsure_;  // oldest first
  std::vector<Unanswered> unanswered_;
  std::thread sweeper_;  // started with the first free; joined by close()
};

}  // namespace drust::server
