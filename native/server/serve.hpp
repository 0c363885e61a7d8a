// The server's data plane: a listener and a few epoll threads that answer wire operations over the partition,
// and never run or wait for Python. Nothing is parsed before the handshake; every address is checked with
// Partition::find; a malformed frame closes its connection, with the reason logged and counted
// (Counter::frames_rejected).
//
// Served reads go out directly from the heap (sendmsg), then the trailer says whether the colour still held.
// Bodies of writes are received whole before anything is changed, so a dying sender tears nothing. Partial
// sends and receives keep their state per connection: one slow peer delays nobody.
// `control` bodies are handed to the Python control plane through take_control()/reply_control().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "heap/heap.hpp"
#include "server/peers.hpp"
#include "server/replicas.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

struct ServeOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: any free one
  std::uint32_t threads = 2;
  Token token;
  std::function<void(const std::string&)>
      log;  // called from serve threads, never holding a lock; may be empty
};

struct ControlRequest {
  std::uint64_t id = 0;
  std::vector<std::byte> body;
};

class Server {
 public:
  // `peers` is used to forward frees of children that live elsewhere and completions of lost tasks.
  static Result<std::unique_ptr<Server>> start(heap::Heap& heap, tasks::Queue& queue, Peers& peers,
                                               ServeOptions options);
  ~Server();  // stops
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept;
  // timed_out after `timeout_ms`, closed after stop().
  Result<ControlRequest> take_control(std::uint32_t timeout_ms);
  void reply_control(std::uint64_t id, std::vector<std::byte> body);

  // Another server was lost. Its endpoint row must say so before the first of these is called.
  //
  // Records of tasks that were sent there: whoever joins one is told at once, unless something was lent with it:
  // those are condemned (Queue::condemn). Tasks of that server, up to that incarnation, are refused. Returns how
  // many were told.
  std::size_t fail_records(ServerId lost, std::uint16_t incarnation);
  // No task that holds what was lent through a lost server runs anywhere: whoever joins a condemned record is told.
  // Returns how many.
  std::size_t settle_records();
  // No process of that incarnation of it changes its replicas here from now on. Returns what there is of it.
  Replicas::Usage close_replicas(ServerId lost, std::uint16_t incarnation);
  // This server answers in its place from now on.
  Replicas::Usage promote(ServerId lost);
  // Frees what of it nobody owns. Returns how many values.
  std::size_t free_orphans(ServerId lost);
  // Puts on `backup` what it lacks: of this server what the backup before it had, or of a lost one whose place
  // this one has taken what is here. Waits for the network; any thread but a serving one.
  Result<Replicas::Usage> protect(ServerId backup, ServerId server);
  [[nodiscard]] Replicas::Usage replicas() const;
  // What is kept here for that server, at most so many; and its answer: has those dropped that are of no use any
  // more, because the process that should have said so was killed before it could. Returns how many.
  [[nodiscard]] std::vector<Replicas::Version> replicas_of(ServerId server, std::size_t most) const;
  std::size_t drop_unused_replicas(std::span<const Replicas::Version> kept_elsewhere);
  void stop() noexcept;

 private:
  class Loops;
  Server() = default;
  std::unique_ptr<Loops> loops_;
};

}  // namespace drust::server
