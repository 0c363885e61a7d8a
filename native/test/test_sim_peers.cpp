// How calls to other servers end in situations that the random schedules (test_simulation.cpp) found.
#include "test/harness.hpp"
#include "test/sim/cluster.hpp"

namespace drust::test {
namespace {

constexpr Cluster::SimTime kSecond = 1'000'000;

// One caller at server 0, in calm weather.
void call_from_zero(const std::function<void(Cluster&, server::Peers&)>& body) {
  Machines machines;
  Fibers::Stacks stacks;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Cluster cluster({.seed = seed}, machines, stacks);
    cluster.network.set_weather({});
    cluster.fibers.start([&] { body(cluster, *cluster.site(0).peers); });
    cluster.run();
    CHECK_EQ(cluster.violation, std::string());
  }
}

void cut(Cluster& cluster, Cluster::SimTime until_us) {
  cluster.network.deafen(0, 1, until_us);
  cluster.network.deafen(1, 0, until_us);
}

}  // namespace

TEST("a call whose connection the kernel gives up after a wait is not made again on a new one") {
  call_from_zero([](Cluster& cluster, server::Peers& peers) {
    CHECK(peers.ping(1).ok());
    cut(cluster, cluster.network.now_us() + 60 * kSecond);
    cluster.fibers.sleep(2 * kSecond);  // nobody has noticed yet
    const Cluster::SimTime start_us = cluster.network.now_us();
    CHECK_EQ(peers.ping(1).code(), Code::server_lost);
    const Cluster::SimTime waited_us = cluster.network.now_us() - start_us;
    CHECK(waited_us >= kSecond);      // keepalive noticed it, or our own bound
    CHECK(waited_us < 4 * kSecond);   // and no attempt to connect came on top
  });
}

TEST("a call whose connection had died while it was idle is made again on a new one") {
  call_from_zero([](Cluster& cluster, server::Peers& peers) {
    CHECK(peers.ping(1).ok());
    cut(cluster, cluster.network.now_us() + 8 * kSecond);
    cluster.fibers.sleep(10 * kSecond);  // noticed on both sides, and over
    CHECK(peers.ping(1).ok());
  });
}

TEST("frees that were sent into a connection that has died are carried out all the same") {
  call_from_zero([](Cluster& cluster, server::Peers& peers) {
    const GlobalPointer block = cluster.site(1).machine.make(std::vector<std::byte>(100), 1);
    CHECK(peers.ping(1).ok());
    cut(cluster, cluster.network.now_us() + 8 * kSecond);
    peers.free_later(block, false);
    CHECK(!peers.flush_frees());  // it left, and nobody answered
    CHECK(cluster.site(1).machine.is_live(block));
    cluster.fibers.sleep(10 * kSecond);
    CHECK(peers.flush_frees());
    CHECK(!cluster.site(1).machine.is_live(block));
  });
}

TEST("frees that a request took into a connection that has died are carried out all the same") {
  call_from_zero([](Cluster& cluster, server::Peers& peers) {
    const GlobalPointer block = cluster.site(1).machine.make(std::vector<std::byte>(100), 1);
    CHECK(peers.ping(1).ok());
    cut(cluster, cluster.network.now_us() + 8 * kSecond);
    peers.free_later(block, false);
    CHECK_EQ(peers.ping(1).code(), Code::server_lost);
    CHECK(cluster.site(1).machine.is_live(block));
    cluster.fibers.sleep(10 * kSecond);
    CHECK(peers.flush_frees());
    CHECK(!cluster.site(1).machine.is_live(block));
  });
}

TEST("a call to a server that cannot be reached ends when connecting may take no longer") {
  call_from_zero([](Cluster& cluster, server::Peers& peers) {
    cut(cluster, cluster.network.now_us() + 60 * kSecond);
    const Cluster::SimTime start_us = cluster.network.now_us();
    CHECK_EQ(peers.ping(1).code(), Code::server_lost);
    CHECK_EQ(cluster.network.now_us() - start_us, kConnectTimeoutMs * 1000ULL);
  });
}

}  // namespace drust::test
