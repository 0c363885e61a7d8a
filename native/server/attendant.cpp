#include "server/attendant.hpp"

#include <algorithm>
#include <utility>

#include "base/limits.hpp"
#include "server/quiet_thread.hpp"

namespace drust::server {
namespace {

constexpr auto kIdle = std::chrono::seconds(60);

bool is_same(const SharedWait& a, const SharedWait& b) noexcept {
  return a.object == b.object && a.who == b.who && a.token == b.token;
}

}  // namespace

Attendant::Attendant(heap::Partition& partition, Operations& operations, Reply reply)
    : partition_(partition), operations_(operations), reply_(std::move(reply)) {}

Attendant::~Attendant() { stop(); }

void Attendant::start() {
  thread_ = start_quiet_thread("drust-shared", [this] { run(); });
}

void Attendant::stop() noexcept {
  is_stopping_.store(true);
  if (!thread_.joinable()) return;
  partition_.ring_bell();
  thread_.join();
}

void Attendant::put(const Asker& asker, const SharedWait& wait) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(answered_, [&](const Answered& each) { return is_same(each.wait, wait); });
    waiting_.push_back({asker, wait, Clock::now() + std::chrono::milliseconds(wait.wait_ms)});
  }
  partition_.ring_bell();
}

void Attendant::cancel(const Asker& asker) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_.push_back(asker);
  }
  partition_.ring_bell();
}

void Attendant::run() {
  while (!is_stopping_.load()) {
    const std::uint32_t seen = partition_.bell();
    const Clock::time_point now = Clock::now();
    look(now);
    if (const std::uint32_t marks = partition_.marks(); marks != marks_seen_ && now >= next_unheld_look_) {
      marks_seen_ = marks;
      operations_.free_unheld();
      next_unheld_look_ = Clock::now() + std::chrono::milliseconds(kSharedBatchMs);
    }
    partition_.wait_bell(seen, next_due(now));
  }
}

Attendant::Clock::time_point Attendant::next_due(Clock::time_point now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Clock::time_point due = now + kIdle;
  if (partition_.marks() != marks_seen_) due = next_unheld_look_;
  for (const Waiting& each : waiting_) due = std::min(due, each.due);
  for (const Answered& each : answered_) due = std::min(due, each.lapses);
  return due;
}

void Attendant::look(Clock::time_point now) {
  std::vector<Waiting> waiting;
  std::vector<Answered> lapsed;
  std::vector<Asker> cancelled;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting.swap(waiting_);
    cancelled.swap(cancelled_);
    std::erase_if(answered_, [&](const Answered& each) {
      if (each.lapses > now) return false;
      lapsed.push_back(each);
      return true;
    });
  }
  for (const Answered& each : lapsed) operations_.lapse(each.wait);
  std::erase_if(waiting, [&](const Waiting& each) {  // first: the dead enter nothing
    if (std::ranges::find(cancelled, each.asker) == cancelled.end()) return false;
    operations_.lapse(each.wait);
    return true;
  });
  std::vector<Answered> answered;
  std::vector<std::pair<Asker, Answer>> answers;
  std::erase_if(waiting, [&](const Waiting& each) {
    Answer answer;
    const bool is_over = each.due <= now;
    const bool has_come = operations_.look_again(each.wait, is_over, answer);
    if (!has_come && !is_over) return false;
    const bool has_place = each.wait.verb == wire::SharedVerb::lock || each.wait.verb == wire::SharedVerb::read;
    if (!has_come && has_place) answered.push_back({each.wait, now + std::chrono::milliseconds(kSharedLapseMs)});
    answers.emplace_back(each.asker, std::move(answer));
    return true;
  });
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.insert(waiting_.end(), waiting.begin(), waiting.end());
    answered_.insert(answered_.end(), answered.begin(), answered.end());
  }
  for (auto& [asker, answer] : answers) reply_(asker, std::move(answer));
}

}  // namespace drust::server
