// Frees waiting to travel, per server, in the order they were asked for. Adding is one short critical section
// and never waits for a peer. The number waiting can be read without the lock, as almost every request finds
// it zero.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/limits.hpp"
#include "protocol/wire.hpp"

namespace drust::server {

class FreeBatches {
 public:
  // Returns how many now wait for that server.
  // An item and its successor are added together.
  std::size_t add(ServerId server, std::initializer_list<wire::FreeItem> items) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::deque<wire::FreeItem>& queue = waiting_[server];
    queue.insert(queue.end(), items);
    total_.fetch_add(items.size(), std::memory_order_relaxed);
    return queue.size();
  }

  // The oldest of that server's, one batch at most.
  std::vector<wire::FreeItem> take(ServerId server) {
    if (total_.load(std::memory_order_relaxed) == 0) return {};
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = waiting_.find(server);
    if (found == waiting_.end()) return {};
    std::deque<wire::FreeItem>& queue = found->second;
    auto count = static_cast<std::ptrdiff_t>(std::min<std::size_t>(queue.size(), kFreesPerBatchMax));
    if (count > 0 && queue[static_cast<std::size_t>(count) - 1].flags == wire::FreeItem::kPassedOn) {
      --count;  // it stays with its successor
    }
    std::vector<wire::FreeItem> batch(queue.begin(), queue.begin() + count);
    queue.erase(queue.begin(), queue.begin() + count);
    total_.fetch_sub(batch.size(), std::memory_order_relaxed);
    return batch;
  }

  // All of a lost server's are of no use to anybody. Returns them.
  std::vector<wire::FreeItem> drop(ServerId server) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = waiting_.find(server);
    if (found == waiting_.end()) return {};
    const std::vector<wire::FreeItem> dropped(found->second.begin(), found->second.end());
    total_.fetch_sub(dropped.size(), std::memory_order_relaxed);
    waiting_.erase(found);
    return dropped;
  }

  [[nodiscard]] std::vector<ServerId> servers() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<ServerId> servers;
    for (const auto& [server, queue] : waiting_) {
      if (!queue.empty()) servers.push_back(server);
    }
    return servers;
  }

  [[nodiscard]] bool is_empty() const noexcept { return total_.load(std::memory_order_relaxed) == 0; }

 private:
  std::mutex mutex_;  // protects waiting_
  std::unordered_map<ServerId, std::deque<wire::FreeItem>> waiting_;
  std::atomic<std::size_t> total_{0};  // of waiting_, written under the mutex, read by anybody as a hint
};

}  // namespace drust::server
