// One serving thread: an epoll set of connections that belong to it alone. Other threads reach it only
// through its inbox (new connections, answers of the control plane), which an eventfd announces. It sleeps in
// epoll_wait without a timeout unless a handshake is under way, so an idle server uses no processor time.
//
// Strangers: a connection that has not proved itself within kHandshakeTimeoutMs is closed; when more than the
// allowed number are under way, the oldest goes (an honest handshake takes well below a millisecond, a flood
// holds on).
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/patience.hpp"
#include "base/status.hpp"
#include "server/attendant.hpp"
#include "server/connection.hpp"
#include "server/control_desk.hpp"
#include "transport/contract.hpp"

namespace drust::server {

inline constexpr std::uint32_t kHandshakeTimeoutMs = 2000;
inline constexpr std::uint32_t kHandshakesMax = 64;  // under way at once, over all loops of a server

struct LoopOptions {
  std::uint32_t index = 0;
  std::uint32_t handshakes_max = kHandshakesMax;
  std::span<const std::byte> token;  // outlives the loop
  const std::function<void(const std::string&)>* log = nullptr;
};

class Loop {
 public:
  using Place = std::function<void(std::unique_ptr<transport::Stream>)>;
  Loop(Operations& operations, ControlDesk& desk, Attendant& attendant, LoopOptions options);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  Status open();  // the descriptors; before anything below
  // This loop also accepts; `place` says which loop gets a new connection (it calls adopt()). Before start().
  Status accept_from(transport::Listener& listener, Place place);
  void start();
  void stop() noexcept;  // joins; closes every connection

  // Any thread.
  void adopt(std::unique_ptr<transport::Stream> stream);
  void answer(std::uint64_t connection, std::vector<std::byte> body);
  void answer_wait(std::uint64_t connection, Answer answer);

 private:
  struct Entry {
    std::unique_ptr<Connection> connection;
    bool is_stranger = true;  // counted in strangers_
    bool awaits_answer = false;  // of the control plane or the attendant
    bool awaits_turn = false;     // of the attendant: its peer has a place in a line
    bool has_turn = false;  // listed in turns_
  };
  struct Letter {
    std::unique_ptr<transport::Stream> stream;  // null: an answer
    std::uint64_t connection = 0;
    std::vector<std::byte> body;
    std::unique_ptr<Answer> waited_for;  // the attendant's; else the control plane's
  };
  struct Stranger {
    std::uint64_t connection;
    std::int64_t deadline_ms;
  };

  void run();
  void accept_all();
  void read_inbox();
  void admit(std::unique_ptr<transport::Stream> stream);
  void drive(std::uint64_t id);
  void close(std::uint64_t id);
  void close_strangers(std::int64_t now_ms);
  int next_events(std::span<epoll_event> events);
  [[nodiscard]] int wait_ms() const;
  void post(Letter letter);
  void wake() noexcept;
  void log(const std::string& sentence) const;

  Operations& operations_;
  ControlDesk& desk_;
  Attendant& attendant_;
  LoopOptions options_;
  int epoll_ = -1;  // constant between open() and destruction, as the two below
  int wake_ = -1;
  std::thread thread_;

  std::atomic<bool> is_stopping_{false};  // set once, by stop(), and followed by wake()
  std::mutex mutex_;                      // protects inbox_
  std::vector<Letter> inbox_;

  // The loop's own thread only.
  transport::Listener* listener_ = nullptr;
  Place place_;
  std::unordered_map<std::uint64_t, Entry> entries_;
  std::deque<Stranger> strangers_;  // oldest first; may name connections that are gone or proved
  std::uint32_t stranger_count_ = 0;
  std::vector<std::uint64_t> turns_;  // connections with more to do at once
  std::uint64_t last_id_ = 0;
  Patience patience_;
};

}  // namespace drust::server
