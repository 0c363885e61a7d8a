#include "server/homeward.hpp"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <vector>

#include "base/limits.hpp"
#include "server/deliver.hpp"
#include "server/quiet_thread.hpp"

namespace drust::server {

Homeward::~Homeward() {
  if (fork_generation() == generation_) {
    static_cast<void>(close());
  } else {  // its threads are the parent's, and its lock in any state
    for (auto& [server, road] : roads_) static_cast<void>(road.release());
  }
}

bool Homeward::take(const tasks::Entry& entry, const GlobalPointer& completion) {
  if (fork_generation() != generation_ || heap_.partition().is_local(entry.record.address)) return false;
  const ServerId server = entry.record.address.server();
  const bool has_more = queue_.ready(1) > 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Road>& road = roads_[server];
  if (is_closed_ || (!has_more && (road == nullptr || !road->is_busy))) return false;
  if (road == nullptr) {
    auto fresh = std::make_unique<Road>();
    try {
      fresh->thread = start_quiet_thread("drust-homeward", [this, server, at = fresh.get()] { run(server, *at); });
    } catch (const std::system_error&) {
      return false;  // no thread to be had
    }
    road = std::move(fresh);
  }
  if (road->waiting.size() >= kCompletionsWaitingMax) return false;
  road->waiting.push_back({entry, completion});
  road->changed.notify_one();
  return true;
}

void Homeward::run(ServerId server, Road& road) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    road.changed.wait(lock, [&] { return is_closed_ || !road.waiting.empty(); });
    if (road.waiting.empty() || road.is_silent) return;
    std::vector<Item> batch;
    std::uint64_t bytes = 0;
    while (!road.waiting.empty() && batch.size() < kCompletionsPerBatchMax && bytes < kCompletionBatchBytes) {
      bytes += road.waiting.front().completion.extent_bytes;
      batch.push_back(road.waiting.front());
      road.waiting.pop_front();
    }
    road.is_busy = true;
    lock.unlock();
    std::vector<Homecoming> all;
    for (const Item& item : batch)
      all.push_back({item.entry.record, item.completion, queue_.is_forbidden(item.entry)});
    const std::vector<Status> answers = deliver_all(heap_, peers_, server, all);
    std::vector<Item> again;  // their server does not answer, but may be there
    for (std::size_t index = 0; index < batch.size(); ++index) {
      if (answers[index].code() == Code::timed_out) {
        again.push_back(batch[index]);
      } else {
        queue_.finish(batch[index].entry);
      }
    }
    lock.lock();
    road.is_busy = false;
    road.is_silent = !again.empty();
    road.waiting.insert(road.waiting.begin(), again.begin(), again.end());
    if (road.is_silent)
      road.is_silent = road.changed.wait_for(lock, std::chrono::milliseconds(kFreesAgainMs), [&] { return is_closed_; });
  }
}

bool Homeward::close() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
    for (auto& [server, road] : roads_) {
      if (road != nullptr) road->changed.notify_all();
    }
  }
  bool is_done = true;
  for (auto& [server, road] : roads_) {  // is_closed_ keeps anybody from adding one
    if (road == nullptr) continue;
    if (road->thread.joinable()) road->thread.join();
    is_done = is_done && road->waiting.empty();
  }
  return is_done;
}

}  // namespace drust::server
