// Authenticated connections to other servers that nobody uses at the moment. A thread takes one, has it to
// itself for a request, and gives it back; the most recently used is taken first, so that a quiet program
// keeps few of them warm. Where a server is stands in the partition's endpoint table; when its epoch changes,
// what led to the old place is closed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/partition.hpp"
#include "transport/contract.hpp"

namespace drust::server {

// How another server is reached: connect_tcp(), or a simulated network's connect().
using Dial = std::function<Result<std::unique_ptr<transport::Stream>>(const heap::Endpoint& endpoint,
                                                                      std::uint32_t timeout_ms)>;

class ConnectionPool {
 public:
  struct Lease {
    std::unique_ptr<transport::Stream> stream;
    std::uint64_t epoch = 0;
    bool is_pooled = false;  // it was idle: its peer may have gone meanwhile
  };
  enum class Choice : std::uint8_t {
    any,     // an idle one if there is one
    tested,  // likewise, but not one whose peer has gone (one more system call)
    fresh,   // a new one; the idle ones are closed, as one of them was found dead
  };

  ConnectionPool(heap::Partition& partition, std::vector<std::byte> token, std::uint32_t timeout_ms,
                 Dial dial);

  // server_lost if it cannot be reached or is not in the table, unauthenticated, version_mismatch, closed.
  Result<Lease> take(ServerId server, Choice choice);
  void give_back(ServerId server, Lease lease);
  void close() noexcept;

 private:
  using Streams = std::vector<std::unique_ptr<transport::Stream>>;
  struct Shelf {
    std::uint64_t epoch = 0;
    Streams idle;  // the last is the most recently used
  };
  Result<Lease> connect(ServerId server, const heap::Endpoint& endpoint) const;

  heap::Partition& partition_;
  const std::vector<std::byte> token_;
  const std::uint32_t timeout_ms_;
  const Dial dial_;
  std::mutex mutex_;  // protects the two below; never held while a connection is made or closed
  std::unordered_map<ServerId, Shelf> shelves_;
  bool is_closed_ = false;
};

}  // namespace drust::server
