#include "server/loop.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/ensure.hpp"
#include "server/quiet_thread.hpp"

namespace drust::server {
namespace {

// Ids of connections begin above these.
constexpr std::uint64_t kWakeId = 1;
constexpr std::uint64_t kListenerId = 2;
constexpr std::uint64_t kFirstId = 16;

std::int64_t now_ms() noexcept {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

}  // namespace

Loop::Loop(Operations& operations, ControlDesk& desk, Attendant& attendant, LoopOptions options)
    : operations_(operations), desk_(desk), attendant_(attendant), options_(options), last_id_(kFirstId) {}

Loop::~Loop() {
  stop();
  if (epoll_ >= 0) ::close(epoll_);
  if (wake_ >= 0) ::close(wake_);
}

Status Loop::open() {
  epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return system_error("epoll_create1");
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_ < 0) return system_error("eventfd");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) != 0) return system_error("epoll_ctl");
  return {};
}

Status Loop::accept_from(transport::Listener& listener, Place place) {
  listener_ = &listener;
  place_ = std::move(place);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerId;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, listener.descriptor(), &event) != 0)
    return system_error("epoll_ctl");
  return {};
}

void Loop::start() {
  thread_ = start_quiet_thread("drust-serve", [this] { run(); });
}

void Loop::stop() noexcept {
  is_stopping_.store(true);
  if (wake_ >= 0) wake();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard<std::mutex> lock(mutex_);
  inbox_.clear();
  entries_.clear();  // the thread has ended
}

void Loop::wake() noexcept {
  const std::uint64_t one = 1;
  // Full (EAGAIN) means that it is awake already.
  ensure(::write(wake_, &one, sizeof one) == sizeof one || errno == EAGAIN, "an eventfd takes a write");
}

void Loop::post(Letter letter) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_stopping_.load()) return;
    inbox_.push_back(std::move(letter));
  }
  wake();
}

void Loop::adopt(std::unique_ptr<transport::Stream> stream) { post({std::move(stream), 0, {}, nullptr}); }

void Loop::answer(std::uint64_t connection, std::vector<std::byte> body) {
  post({nullptr, connection, std::move(body), nullptr});
}

void Loop::answer_wait(std::uint64_t connection, Answer answer) {
  post({nullptr, connection, {}, std::make_unique<Answer>(std::move(answer))});
}

void Loop::log(const std::string& sentence) const {
  if (options_.log != nullptr && *options_.log) (*options_.log)(sentence);
}

void Loop::run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    const int count = next_events(events);
    ensure(count >= 0 || errno == EINTR, "epoll_wait must work");
    if (is_stopping_.load()) return;
    for (int index = 0; index < count; ++index) {
      const epoll_event& event = events[static_cast<std::size_t>(index)];
      if (event.data.u64 == kWakeId) {
        read_inbox();
      } else if (event.data.u64 == kListenerId) {
        accept_all();
      } else if (const auto found = entries_.find(event.data.u64); found != entries_.end()) {
        const bool is_ending = (event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        found->second.connection->set_ready((event.events & EPOLLIN) != 0 || is_ending,
                                            (event.events & EPOLLOUT) != 0 || is_ending, is_ending);
        if (is_ending && found->second.awaits_turn) {  // nobody hangs up while he waits: that process has died
          attendant_.cancel({options_.index, event.data.u64});
          close(event.data.u64);
        } else {
          drive(event.data.u64);
        }
      }
    }
    for (const std::uint64_t id : std::exchange(turns_, {})) {
      if (const auto found = entries_.find(id); found != entries_.end()) {
        found->second.has_turn = false;
        drive(id);
      }
    }
    if (stranger_count_ > 0) close_strangers(now_ms());
  }
}

// A peer that has just had an answer often asks again.
int Loop::next_events(std::span<epoll_event> events) {
  const auto poll = [&](int timeout_ms) {
    return ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout_ms);
  };
  if (!turns_.empty()) return poll(0);
  int count = 0;
  if (patience_.wait([&] { return (count = poll(0)) != 0; })) return count;
  return poll(wait_ms());
}

int Loop::wait_ms() const {
  if (stranger_count_ == 0) return -1;
  const std::int64_t left_ms = strangers_.front().deadline_ms - now_ms();
  return left_ms > 0 ? static_cast<int>(left_ms) + 1 : 0;
}

void Loop::accept_all() {
  for (;;) {
    Result<std::unique_ptr<transport::Stream>> accepted = listener_->try_accept();
    if (!accepted.ok()) {
      log("accepting a connection failed: " + accepted.status().detail());
      return;
    }
    if (accepted.value() == nullptr) return;
    place_(std::move(accepted.value()));
  }
}

void Loop::read_inbox() {
  std::uint64_t count = 0;
  ensure(::read(wake_, &count, sizeof count) >= 0 || errno == EAGAIN, "an eventfd can be read");
  std::vector<Letter> letters;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    letters.swap(inbox_);
  }
  for (Letter& letter : letters) {
    if (letter.stream != nullptr) {
      admit(std::move(letter.stream));
    } else if (const auto found = entries_.find(letter.connection); found != entries_.end()) {
      found->second.awaits_answer = false;
      found->second.awaits_turn = false;
      if (letter.waited_for != nullptr) {
        found->second.connection->answer_wait(std::move(*letter.waited_for));
      } else {
        found->second.connection->answer_control(letter.body);
      }
      drive(letter.connection);
    } else if (letter.waited_for != nullptr) {
      operations_.drop(*letter.waited_for);
    }
  }
}

void Loop::admit(std::unique_ptr<transport::Stream> stream) {
  const std::uint64_t id = ++last_id_;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = id;
  const int descriptor = stream->descriptor();
  Entry entry;
  entry.connection = std::make_unique<Connection>(std::move(stream), operations_, options_.token);
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event) != 0) {
    log("accepting a connection failed: " + system_error("epoll_ctl").detail());
    return;
  }
  entries_.emplace(id, std::move(entry));
  strangers_.push_back({id, now_ms() + kHandshakeTimeoutMs});
  ++stranger_count_;
  close_strangers(now_ms());
  drive(id);
}

void Loop::drive(std::uint64_t id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  if (entry.awaits_answer) return;
  const Connection::Wants wants = entry.connection->advance();
  if (entry.is_stranger && entry.connection->is_authenticated()) {
    entry.is_stranger = false;
    --stranger_count_;
  }
  switch (wants) {
    case Connection::Wants::event: break;
    case Connection::Wants::turn:
      if (!std::exchange(entry.has_turn, true)) turns_.push_back(id);
      break;
    case Connection::Wants::control:
      entry.awaits_answer = true;
      desk_.put({options_.index, id}, entry.connection->take_control());
      break;
    case Connection::Wants::waits:
      entry.awaits_answer = true;
      entry.awaits_turn = true;
      attendant_.put({options_.index, id}, entry.connection->wait());
      break;
    case Connection::Wants::close: close(id); break;
  }
}

void Loop::close(std::uint64_t id) {
  const auto found = entries_.find(id);
  const Connection& connection = *found->second.connection;
  if (!connection.reason().ok()) {
    log("dropped " + connection.stream().peer() + ": " + connection.reason().detail());
  }
  if (found->second.is_stranger) --stranger_count_;
  entries_.erase(found);  // closing the descriptor takes it out of the epoll set
}

// Closes those whose time is up at `now`, and the oldest while there are too many. Those that proved
// themselves or left are only forgotten.
void Loop::close_strangers(std::int64_t now) {
  while (!strangers_.empty()) {
    const Stranger oldest = strangers_.front();
    const auto found = entries_.find(oldest.connection);
    const bool is_stranger = found != entries_.end() && found->second.is_stranger;
    const bool is_crowded = stranger_count_ > options_.handshakes_max;
    if (is_stranger && oldest.deadline_ms > now && !is_crowded) return;
    strangers_.pop_front();
    if (!is_stranger) continue;
    if (found->second.connection->reason().ok()) {
      operations_.count(heap::Counter::frames_rejected);
      log("dropped " + found->second.connection->stream().peer() +
          (is_crowded ? ": too many strangers" : ": it has not proved itself in time"));
    }
    close(oldest.connection);
  }
}

}  // namespace drust::server
