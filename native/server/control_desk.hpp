// Where control requests wait for the server's control plane, which is slow and written in Python, so that no
// serving thread ever waits for it. A request is known by an id; its answer goes back to the loop whose
// connection asked, if that connection still lives.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/status.hpp"
#include "server/serve.hpp"

namespace drust::server {

class ControlDesk {
 public:
  struct Asker {
    std::uint32_t loop = 0;
    std::uint64_t connection = 0;
  };

  void put(Asker asker, std::vector<std::byte> body);
  // timed_out, or closed after close().
  Result<ControlRequest> take(std::uint32_t timeout_ms);
  // Who asked; nothing if the id was answered before.
  std::optional<Asker> settle(std::uint64_t id);
  void close() noexcept;

 private:
  std::mutex mutex_;  // protects everything below
  std::condition_variable arrived_;
  std::deque<ControlRequest> waiting_;
  std::unordered_map<std::uint64_t, Asker> askers_;
  std::uint64_t last_id_ = 0;
  bool is_closed_ = false;
};

}  // namespace drust::server
