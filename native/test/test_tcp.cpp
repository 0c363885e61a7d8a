// What only a kernel can do to a TCP stream. What every transport must do: test_transports.cpp.
#include "transport/tcp.hpp"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "test/harness.hpp"

using namespace drust;
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

iovec piece(Bytes& bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace

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

TEST("a name is no address") {
  CHECK_EQ(transport::connect_tcp("localhost", 1, 2000).status().code(), Code::bad_request);
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
