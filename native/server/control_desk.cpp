#include "server/control_desk.hpp"

#include <chrono>
#include <utility>

namespace drust::server {

void ControlDesk::put(Asker asker, std::vector<std::byte> body) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    askers_.emplace(++last_id_, asker);
    waiting_.push_back({last_id_, std::move(body)});
  }
  arrived_.notify_one();
}

Result<ControlRequest> ControlDesk::take(std::uint32_t timeout_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const bool is_there = arrived_.wait_until(lock, end, [this] { return is_closed_ || !waiting_.empty(); });
  if (is_closed_) return Status(Code::closed, "the server has been stopped");
  if (!is_there) return Status(Code::timed_out, "no control request");
  ControlRequest request = std::move(waiting_.front());
  waiting_.pop_front();
  return request;
}

std::optional<ControlDesk::Asker> ControlDesk::settle(std::uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = askers_.find(id);
  if (found == askers_.end()) return std::nullopt;
  const Asker asker = found->second;
  askers_.erase(found);
  return asker;
}

void ControlDesk::close() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
    waiting_.clear();
    askers_.clear();
  }
  arrived_.notify_all();
}

}  // namespace drust::server
