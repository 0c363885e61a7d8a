// TCP streams: what arrives, and how each kind of lost peer shows within its bound.
#include "transport/tcp.hpp"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "base/limits.hpp"
#include "test/harness.hpp"
#include "transport/handshake.hpp"

using namespace drust;
using transport::Flow;
using transport::Stream;

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

std::int64_t ms_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

struct Pair {
  std::unique_ptr<Stream> client;
  std::unique_ptr<Stream> server;
};

// Two ends of one TCP connection over loopback.
Pair make_pair() {
  auto listener = transport::listen_tcp("127.0.0.1", 0);
  Pair pair;
  if (!CHECK(listener.ok())) return pair;
  auto client = transport::connect_tcp("127.0.0.1", listener.value()->port(), 1000);
  if (!CHECK(client.ok())) return pair;
  pair.client = std::move(client.value());
  while (pair.server == nullptr) {
    pollfd waiting{listener.value()->descriptor(), POLLIN, 0};
    (void)::poll(&waiting, 1, 1000);
    auto accepted = listener.value()->try_accept();
    if (!CHECK(accepted.ok())) return pair;
    pair.server = std::move(accepted.value());
  }
  pair.server->bound_silence(1000);
  return pair;
}

Bytes pattern(std::size_t count) {
  Bytes bytes(count);
  for (std::size_t index = 0; index < count; ++index)
    bytes[index] = static_cast<std::byte>((index * 31 + index / 251) & 0xff);
  return bytes;
}

iovec piece(Bytes& bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace

TEST("a message sent in pieces arrives whole in other pieces") {
  Pair pair = make_pair();
  Bytes sent = pattern(3'000'000);
  std::thread sender([&] {
    iovec parts[3] = {{sent.data(), 1}, {sent.data() + 1, 0}, {sent.data() + 1, sent.size() - 1}};
    CHECK(pair.client->send_all(parts).ok());
  });
  Bytes head(100'000);
  Bytes rest(sent.size() - head.size());
  iovec parts[2] = {piece(head), piece(rest)};
  CHECK(pair.server->receive_all(parts).ok());
  sender.join();
  head.insert(head.end(), rest.begin(), rest.end());
  CHECK(head == sent);
}

TEST("a stream that takes no more says would_block and nothing is lost") {
  Pair pair = make_pair();
  Bytes sent = pattern(32 << 20);
  std::size_t taken = 0;
  for (;;) {
    const iovec part{sent.data() + taken, sent.size() - taken};
    const auto transfer = pair.client->try_send({&part, 1}, false);
    if (transfer.flow == Flow::would_block) break;
    if (!CHECK_EQ(transfer.flow, Flow::moved)) return;
    taken += transfer.bytes;
  }
  CHECK(taken > 0);
  CHECK(taken < sent.size());
  Bytes received(taken);
  iovec part = piece(received);
  CHECK(pair.server->receive_all({&part, 1}).ok());
  CHECK(std::memcmp(received.data(), sent.data(), taken) == 0);
  const iovec more = piece(received);
  CHECK_EQ(pair.server->try_receive({&more, 1}).flow, Flow::would_block);
}

TEST("a peer that closes is lost at once to who waits for it") {
  Pair pair = make_pair();
  std::thread closer([&] { pair.server.reset(); });
  Bytes buffer(8);
  iovec part = piece(buffer);
  const auto start = Clock::now();
  CHECK_EQ(pair.client->receive_all({&part, 1}).code(), Code::server_lost);
  CHECK(ms_since(start) < 500);
  closer.join();
}

TEST("an idle stream tells whether its peer is still there") {
  Pair pair = make_pair();
  CHECK(pair.client->is_idle_and_open());
  Bytes one(1);
  iovec part = piece(one);
  CHECK(pair.server->send_all({&part, 1}).ok());
  pollfd waiting{pair.client->descriptor(), POLLIN, 0};
  CHECK_EQ(::poll(&waiting, 1, 1000), 1);
  CHECK(!pair.client->is_idle_and_open());  // nobody asked for that byte
  Pair other = make_pair();
  other.server.reset();
  waiting.fd = other.client->descriptor();
  CHECK_EQ(::poll(&waiting, 1, 1000), 1);
  CHECK(!other.client->is_idle_and_open());
}

TEST("a silent peer is an error after the bound, for a receiver and for a sender") {
  Pair pair = make_pair();
  pair.client->bound_silence(150);
  Bytes buffer(8);
  iovec part = piece(buffer);
  auto start = Clock::now();
  CHECK_EQ(pair.client->receive_all({&part, 1}).code(), Code::timed_out);
  CHECK(ms_since(start) >= 140);
  CHECK(ms_since(start) < 1000);
  Bytes much(64 << 20);
  part = piece(much);
  start = Clock::now();
  CHECK_EQ(pair.client->send_all({&part, 1}).code(), Code::timed_out);
  CHECK(ms_since(start) < 2000);
}

TEST("signals do not stretch the bound") {
  Pair pair = make_pair();
  pair.client->bound_silence(300);
  struct sigaction action{};
  struct sigaction before{};
  static std::atomic<int> rings;
  rings = 0;
  action.sa_handler = [](int) { ++rings; };
  ::sigaction(SIGALRM, &action, &before);
  const itimerval often{{0, 40'000}, {0, 40'000}};
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &often, nullptr);
  Bytes buffer(8);
  iovec part = piece(buffer);
  const auto start = Clock::now();
  CHECK_EQ(pair.client->receive_all({&part, 1}).code(), Code::timed_out);
  const std::int64_t waited_ms = ms_since(start);
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  CHECK(rings > 1);
  CHECK(waited_ms >= 290);
  CHECK(waited_ms < 1000);
}

TEST("nobody at a port is an error at once, and a name is no address") {
  std::uint16_t port = 0;
  {
    auto listener = transport::listen_tcp("127.0.0.1", 0);
    if (!CHECK(listener.ok())) return;
    port = listener.value()->port();
  }
  const auto start = Clock::now();
  CHECK_EQ(transport::connect_tcp("127.0.0.1", port, 2000).status().code(), Code::server_lost);
  CHECK(ms_since(start) < 500);
  CHECK_EQ(transport::connect_tcp("localhost", port, 2000).status().code(), Code::bad_request);
}

TEST("a host that does not answer is an error within the time for connecting") {
  // A listener whose queue is full drops further attempts, as a cut cable would.
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (!CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0)) return;
  CHECK(::listen(listener, 0) == 0);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::vector<std::unique_ptr<Stream>> waiting;
  Status last;
  std::int64_t waited_ms = 0;
  for (int attempt = 0; attempt < 8 && last.ok(); ++attempt) {
    const auto start = Clock::now();
    auto stream = transport::connect_tcp("127.0.0.1", ntohs(address.sin_port), 200);
    waited_ms = ms_since(start);
    if (stream.ok()) {
      waiting.push_back(std::move(stream.value()));
    } else {
      last = stream.status();
    }
  }
  CHECK_EQ(last.code(), Code::server_lost);
  CHECK(waited_ms >= 190);
  CHECK(waited_ms < 1000);
  ::close(listener);
}

TEST("two ends shake hands over a stream; a wrong token is refused over it") {
  for (const bool is_same : {true, false}) {
    Pair pair = make_pair();
    const Bytes ours(kTokenBytes, std::byte{1});
    const Bytes theirs(kTokenBytes, is_same ? std::byte{1} : std::byte{2});
    std::thread server([&] {
      transport::Handshake handshake(transport::Role::server, theirs, 5, transport::draw_nonce());
      Status status = transport::shake_hands(*pair.server, handshake, 1000);
      CHECK_EQ(status.code(), is_same ? Code::ok : Code::unauthenticated);
      const auto last_word = handshake.take_outgoing();
      iovec part{const_cast<std::byte*>(last_word.data()), last_word.size()};
      CHECK(pair.server->send_all({&part, 1}).ok());
    });
    transport::Handshake handshake(transport::Role::client, ours, 5, transport::draw_nonce());
    CHECK_EQ(transport::shake_hands(*pair.client, handshake, 1000).code(),
             is_same ? Code::ok : Code::unauthenticated);
    server.join();
  }
}

TEST("a server that trickles its handshake is given up in time") {
  Pair pair = make_pair();
  std::atomic<bool> is_over{false};
  std::thread server([&] {
    transport::Hello hello;
    hello.role = static_cast<std::uint8_t>(transport::Role::server);
    for (std::size_t index = 0; index < sizeof hello && !is_over; ++index) {
      iovec part{reinterpret_cast<std::byte*>(&hello) + index, 1};
      if (!pair.server->send_all({&part, 1}).ok()) return;
      pollfd pace{pair.server->descriptor(), 0, 0};
      (void)::poll(&pace, 1, 60);  // slow is the point here
    }
  });
  const Bytes token(kTokenBytes, std::byte{1});
  transport::Handshake handshake(transport::Role::client, token, 0, transport::draw_nonce());
  const auto start = Clock::now();
  CHECK_EQ(transport::shake_hands(*pair.client, handshake, 300).code(), Code::timed_out);
  CHECK(ms_since(start) < 1000);
  is_over = true;
  server.join();
}
