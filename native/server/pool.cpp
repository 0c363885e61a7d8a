#include "server/pool.hpp"

#include <string>
#include <utility>

#include "base/limits.hpp"
#include "transport/handshake.hpp"
#include "transport/tcp.hpp"

namespace drust::server {
namespace {

constexpr std::size_t kIdlePerServerMax = 32;

}  // namespace

ConnectionPool::ConnectionPool(heap::Partition& partition, std::vector<std::byte> token,
                               std::uint32_t timeout_ms, Dial dial)
    : partition_(partition),
      token_(std::move(token)),
      timeout_ms_(timeout_ms),
      dial_(dial ? std::move(dial) : [](const heap::Endpoint& endpoint, std::uint32_t connect_timeout_ms) {
        return transport::connect_tcp(endpoint.host, endpoint.port, connect_timeout_ms);
      }) {}

Result<ConnectionPool::Lease> ConnectionPool::take(ServerId server, Choice choice) {
  const heap::Endpoint endpoint = partition_.endpoint(server);
  if (endpoint.epoch == 0) return Status(Code::server_lost, "there is no server " + std::to_string(server));
  if (endpoint.port == 0) return Status(Code::server_lost, "it has ended, and no replica has taken its place");
  for (;;) {
    Streams dropped;  // closed after the lock is gone
    Lease lease{nullptr, endpoint.epoch, true};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (is_closed_) return Status(Code::closed, "connections to other servers have been shut down");
      Shelf& shelf = shelves_[server];
      if (shelf.epoch != endpoint.epoch || choice == Choice::fresh) dropped.swap(shelf.idle);
      shelf.epoch = endpoint.epoch;
      if (!shelf.idle.empty()) {
        lease.stream = std::move(shelf.idle.back());
        shelf.idle.pop_back();
      }
    }
    if (lease.stream == nullptr) return connect(server, endpoint);
    if (choice == Choice::any || lease.stream->is_idle_and_open()) return lease;
  }
}

Result<ConnectionPool::Lease> ConnectionPool::connect(ServerId server, const heap::Endpoint& endpoint) const {
  if (token_.size() != kTokenBytes)
    return Status(Code::unauthenticated, "there is no token to prove ourselves with");
  auto connected = dial_(endpoint, kConnectTimeoutMs);
  if (!connected.ok()) return connected.status();
  const ServerId answering = endpoint.by == kNoServer ? server : endpoint.by;
  transport::Handshake handshake(transport::Role::client, token_, answering, transport::draw_nonce());
  if (Status status = transport::shake_hands(*connected.value(), handshake, kConnectTimeoutMs); !status.ok())
    return status;
  connected.value()->bound_silence(timeout_ms_);
  return Lease{std::move(connected.value()), endpoint.epoch, false};
}

void ConnectionPool::give_back(ServerId server, Lease lease) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Shelf& shelf = shelves_[server];
  const bool is_wanted = !is_closed_ && shelf.epoch == lease.epoch && shelf.idle.size() < kIdlePerServerMax;
  if (is_wanted) shelf.idle.push_back(std::move(lease.stream));
}

void ConnectionPool::close() noexcept {
  std::unordered_map<ServerId, Shelf> dropped;
  const std::lock_guard<std::mutex> lock(mutex_);
  is_closed_ = true;
  dropped.swap(shelves_);
}

}  // namespace drust::server
