// How Peers asks: which connection a request leaves on, when it is tried again, what is counted, and how
// frees travel. Peers itself (peers.cpp) says what each call sends and where its reply goes.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "server/call.hpp"
#include "server/forks.hpp"
#include "server/free_batches.hpp"
#include "server/peers.hpp"
#include "server/pool.hpp"

namespace drust::server {

class Peers::Pool {
 public:
  Pool(heap::Heap& given, PeersOptions options)
      : heap(given),
        partition(given.partition()),
        has_sweeper_(options.has_sweeper),
        connections_(partition, std::move(options.token), options.timeout_ms, std::move(options.dial)) {}
  ~Pool() { close(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // One request, with the frees that wait for that server ahead of it. Any thread, several at once.
  Status ask(ServerId server, Call& call);
  void free_later(const GlobalPointer& remote, std::uint64_t flags);  // wire::FreeItem's
  void free_tied_later(const GlobalPointer& remote, const GlobalPointer& successor);
  void flush();
  void close() noexcept;
  // Whether this is a child's copy of its parent's object.
  [[nodiscard]] bool is_forked() const noexcept { return fork_generation() != generation_; }

  heap::Heap& heap;
  heap::Partition& partition;

 private:
  void queue_frees(ServerId server, std::initializer_list<wire::FreeItem> items);
  void count_message(const Call& call, std::size_t frees) const;
  void have_left(std::span<const wire::FreeItem> frees) noexcept;
  Status give_up(ServerId server, Status status);
  // False when there was nothing to send, or nobody to send it to.
  bool send_batch(ServerId server);
  // The sweeper's thread: sends what no request took along.
  void sweep();

  const std::uint32_t generation_ = fork_generation();
  const bool has_sweeper_;
  ConnectionPool connections_;  // has its own lock, as the next one
  FreeBatches frees_;
  std::mutex mutex_;  // protects the members below; never held while a peer is waited for
  std::condition_variable changed_;
  bool has_full_batch_ = false;
  bool is_closed_ = false;
  std::thread sweeper_;  // started with the first free; joined by close()
};

}  // namespace drust::server
