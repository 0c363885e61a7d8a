// Replication between servers over real sockets: what is on the backup and when, what a promotion serves, and
// that nothing is left there. Hosts of one process stand for servers; a lost one is one that has stopped
// serving.
#include "server/replicas.hpp"

#include <chrono>
#include <cstring>
#include <thread>

#include "test/harness.hpp"
#include "test/heard.hpp"
#include "test/host.hpp"

using namespace drust;
using heap::Counter;
using test::Host;
using test::pattern;
using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

namespace {

template <class Condition>
bool eventually(Condition condition) {
  const auto start = Clock::now();
  while (!condition()) {
    if (Clock::now() - start > std::chrono::seconds(3)) return false;
    std::this_thread::yield();
  }
  return true;
}

constexpr std::uint64_t kHeapBytes = 64ULL << 20;

// Home, a server that is backed up, its backup, and one more.
struct Cluster {
  Host home;
  Host first;
  Host second;
  Host third;
  // `replicates_all`: the session's setting.
  explicit Cluster(bool has_backup = true, bool replicates_all = true)
      : home(0, kHeapBytes, test::test_token(), replicates_all),
        first(1, kHeapBytes, test::test_token(), replicates_all),
        second(2, kHeapBytes, test::test_token(), replicates_all),
        third(3, kHeapBytes, test::test_token(), replicates_all) {
    for (Host* each : all()) CHECK(each->serve().ok());
    row(first, 1, kNoServer, has_backup ? 2 : kNoServer);
    row(home, 1);
    row(second, 1, kNoServer, has_backup ? 3 : kNoServer);
    row(third, 1);
  }
  std::vector<Host*> all() { return {&home, &first, &second, &third}; }
  // Everybody's row of `server`.
  void row(Host& server, std::uint64_t epoch, ServerId by = kNoServer, ServerId backup = kNoServer) {
    for (Host* each : all()) {
      each->partition->set_endpoint(server.partition->server(),
                                    {epoch, "127.0.0.1", server.server->port(), by, backup});
    }
  }
  void lose(ServerId lost, std::uint64_t epoch, ServerId backup) {
    for (Host* each : all()) each->partition->set_endpoint(lost, {epoch, "127.0.0.1", 0, kNoServer, backup});
  }
  void replace(ServerId lost, std::uint64_t epoch, Host& by, ServerId backup) {
    by.server->promote(lost);
    for (Host* each : all()) {
      each->partition->set_endpoint(
          lost, {epoch, "127.0.0.1", by.server->port(), by.partition->server(), backup});
    }
  }
  // `first` is gone, and `second` answers for it.
  void fail_over() {
    first.server.reset();
    lose(1, 2, 2);
    replace(1, 3, second, 3);
  }
  // A completion from `first` to a task of home that owns these values; with `is_excepted`, the last of them is an
  // exception from what the session says.
  Status hand_over(const std::vector<GlobalPointer>& values, bool is_excepted = false) {
    const GlobalPointer record = tasks::Queue::make_record(*home.heap, 1).value();
    const GlobalPointer completion = first.make_parent(values);
    if (is_excepted) first.block(completion.address).children().back().flags |= heap::ChildPointer::kExcepted;
    Status status = first.peers->complete(record, 1, completion);
    CHECK(first.heap->free_shallow(completion).ok());
    return status;
  }
  Bytes read(const GlobalPointer& pointer) {
    const auto here = home.peers->read_block(pointer);
    return here.ok() ? home.bytes(here.value()) : Bytes();
  }
  std::uint64_t versions() { return second.server->replicas().versions; }
};

server::StagedReplica staged(Host& host, const GlobalPointer& primary, std::uint64_t stamp) {
  return {primary, stamp, false, host.make(pattern(64))};
}

GlobalPointer version(std::uint64_t granules, std::uint64_t colour) {
  return {Address::make(1, granules * 4096), (1ULL << 48) | colour, 192};
}

}  // namespace

TEST("a value is on the backup before the completion that hands it over is home, once a version") {
  Cluster cluster;
  const GlobalPointer child = cluster.first.make(pattern(5000, 1));
  const GlobalPointer parent = cluster.first.make_parent({child});
  CHECK(cluster.hand_over({parent}).ok());
  CHECK_EQ(cluster.versions(), 2);
  CHECK_EQ(cluster.first.counted(Counter::replica_messages), 1);  // one commit for both
  CHECK_EQ(cluster.first.counted(Counter::blocks_replicated), 2);
  CHECK(cluster.hand_over({parent}).ok());
  CHECK_EQ(cluster.first.counted(Counter::replica_messages), 1);
  const GlobalPointer next = cluster.first.heap->recolour(parent).value();
  CHECK(cluster.hand_over({next}).ok());
  CHECK_EQ(cluster.first.counted(Counter::blocks_replicated), 3);  // the child is as it was
}

TEST("without a backup no message is sent, and no block is marked") {
  Cluster cluster(false);
  const GlobalPointer value = cluster.first.make(pattern(100));
  CHECK(cluster.hand_over({value}).ok());
  CHECK_EQ(cluster.first.counted(Counter::replica_messages), 0);
  CHECK_EQ(cluster.first.block(value.address).header().flags.load(), 0);
  CHECK(cluster.first.heap->free_shallow(value).ok());
  cluster.first.peers->flush_frees();
  CHECK_EQ(cluster.first.counted(Counter::free_messages), 0);
}

TEST("in a session without replicas a value has one if its pointer says so, with all that is inside it") {
  Cluster cluster(true, false);
  const GlobalPointer plain = cluster.first.make_parent({cluster.first.make(pattern(100))});
  const GlobalPointer asked = cluster.first.make_parent({cluster.first.make(pattern(5000))});
  CHECK(cluster.hand_over({plain}).ok());
  CHECK_EQ(cluster.first.counted(Counter::replica_messages), 0);
  CHECK_EQ(cluster.first.block(plain.address).header().flags.load(), 0);
  CHECK(!cluster.first.partition->has_replicated());
  CHECK(cluster.hand_over({plain, asked}, true).ok());
  CHECK_EQ(cluster.versions(), 2);
  CHECK_EQ(cluster.first.counted(Counter::replica_messages), 1);
  cluster.home.peers->flush_frees();
  CHECK_EQ(cluster.home.counted(Counter::frees_sent), 1);  // that it owns the one, now
  CHECK(cluster.first.partition->has_replicated());
  cluster.fail_over();
  CHECK(cluster.home.peers->read_block(asked).ok());
  CHECK_EQ(cluster.home.peers->read_block(plain).status().code(), Code::not_found);
}

TEST("in a session with replicas a value has none if its pointer says so") {
  Cluster cluster;
  const GlobalPointer kept = cluster.first.make(pattern(100));
  const GlobalPointer excepted = cluster.first.make(pattern(5000));
  CHECK(cluster.hand_over({kept, excepted}, true).ok());
  CHECK_EQ(cluster.versions(), 1);
  CHECK_EQ(cluster.first.block(excepted.address).header().flags.load(), 0);
}

TEST("the free of a replicated block frees its replica, whoever frees it") {
  Cluster cluster;
  const std::uint64_t before = cluster.second.partition->live_blocks();
  const GlobalPointer here = cluster.first.make(pattern(100));
  const GlobalPointer there = cluster.first.make_parent({cluster.first.make(pattern(200))});
  CHECK(cluster.hand_over({here, there}).ok());
  CHECK_EQ(cluster.second.partition->live_blocks(), before + 3);
  CHECK(cluster.first.heap->free_shallow(here).ok());
  cluster.home.peers->free_later(there, false);
  CHECK(eventually([&] { return cluster.versions() == 0; }));
  CHECK_EQ(cluster.second.partition->live_blocks(), before);
}

TEST("after a promotion the successor serves what was handed over, under the same address and colour") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(70'000, 3));
  const GlobalPointer kept = cluster.first.make(pattern(10));
  CHECK(cluster.hand_over({value}).ok());
  cluster.fail_over();
  CHECK(cluster.read(value) == pattern(70'000, 3));
  Bytes part(100);
  CHECK(cluster.home.peers->read_region(value, {50, 100, 1, 0}, part).ok());
  const Bytes whole = pattern(70'000, 3);
  CHECK(std::memcmp(part.data(), whole.data() + 50, part.size()) == 0);
  const auto unseen = cluster.home.peers->read_block(kept);
  CHECK_EQ(unseen.status().code(), Code::not_found);
  CHECK(unseen.status().detail().find("server 1 was lost") != std::string::npos);
  CHECK(cluster.home.peers->ping(1).ok());
  CHECK_EQ(cluster.home.peers->control(1, {}).status().code(), Code::server_lost);  // for that very server
}

TEST("a server that dies before its completion is home leaves its caller with the version before") {
  Cluster cluster;
  const GlobalPointer lent = cluster.first.make(pattern(1000, 1));
  CHECK(cluster.hand_over({lent}).ok());
  // A task writes in place; its new version is on the backup, the completion is not sent any more.
  auto buffer = cluster.first.block(lent.address).buffer(0);
  const Bytes written = pattern(1000, 2);
  std::memcpy(buffer.data(), written.data(), written.size());
  const GlobalPointer now = cluster.first.heap->recolour(lent).value();
  const GlobalPointer nowhere = tasks::Queue::make_record(*cluster.home.heap, 1).value();
  cluster.lose(0, 2, kNoServer);
  const GlobalPointer completion = cluster.first.make_parent({now});
  CHECK_EQ(cluster.first.peers->complete(nowhere, 1, completion).code(), Code::server_lost);
  cluster.row(cluster.home, 3);
  cluster.fail_over();
  CHECK(cluster.read(lent) == pattern(1000, 1));
  CHECK(cluster.read(now) == written);
}

TEST("once the completion is home, the version before goes") {
  Cluster cluster;
  GlobalPointer value = cluster.first.make(pattern(1000, 1));
  CHECK(cluster.hand_over({value}).ok());
  for (int round = 0; round < 5; ++round) {
    value = cluster.first.heap->recolour(value).value();
    CHECK(cluster.hand_over({value}).ok());
    CHECK(eventually([&] { return cluster.versions() == 1; }));
  }
}

TEST("a notice that comes late does not hit the replica of what came to its address next") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  std::vector<server::StagedReplica> batch{staged(host, version(1, 7), 5)};
  CHECK(replicas.commit(batch).ok());
  batch = {staged(host, version(1, 8), 9)};
  CHECK(replicas.commit(batch).ok());
  replicas.drop_older(version(1, 7).address, 8);  // the first one's free
  CHECK_EQ(replicas.usage().versions, 1);
  replicas.promote(1);
  CHECK(replicas.find(version(1, 8)).ok());
}

TEST("a version that comes after the notice of its end is not kept, as its sender died meanwhile") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  replicas.drop_older(version(1, 7).address, 8);
  std::vector<server::StagedReplica> batch{staged(host, version(1, 7), 5)};
  CHECK(replicas.commit(batch).ok());
  CHECK_EQ(replicas.usage().versions, 0);
  CHECK_EQ(host.partition->live_blocks(), 0);
  batch = {staged(host, version(1, 8), 9)};  // what came to the address next
  CHECK(replicas.commit(batch).ok());
  CHECK_EQ(replicas.usage().versions, 1);
}

TEST("once a server is lost its processes change nothing, and once it is started again they do") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  std::vector<server::StagedReplica> batch{staged(host, version(1, 7), 5)};
  CHECK(replicas.commit(batch).ok());
  CHECK_EQ(replicas.close(1, 1).versions, 1);
  batch = {staged(host, version(2, 8), 9)};
  CHECK_EQ(replicas.commit(batch).code(), Code::server_lost);
  replicas.drop_older(version(1, 7).address, 100);
  CHECK_EQ(replicas.usage().versions, 1);
  GlobalPointer next = version(3, 9);
  next.colour = (2ULL << 48) | 9;  // of the next incarnation
  batch = {staged(host, next, (2ULL << 48) | 1)};
  CHECK(replicas.commit(batch).ok());
  replicas.drop_older(next.address, 10'000);  // a late notice of the lost one
  CHECK_EQ(replicas.usage().versions, 2);
  replicas.drop_older(next.address, (2ULL << 48) | 2);
  CHECK_EQ(replicas.usage().versions, 1);
}

TEST("the stamps of a server that was started again are newer than all before") {
  heap::CreateOptions options{.server = 1, .incarnation = 1, .heap_bytes = kHeapBytes};
  const auto before = heap::Partition::create(options);
  options.incarnation = 2;
  const auto after = heap::Partition::create(options);
  std::uint64_t last = 0;
  for (int draw = 0; draw < 1000; ++draw) last = before.value()->draw_replica_stamp();
  CHECK(after.value()->draw_replica_stamp() > last);
}

TEST("a completion that does not count any more leaves its receiver the version before") {
  Cluster cluster;
  const GlobalPointer lent = cluster.first.make(pattern(1000, 1));
  CHECK(cluster.hand_over({lent}).ok());
  auto buffer = cluster.first.block(lent.address).buffer(0);
  const Bytes written = pattern(1000, 2);
  std::memcpy(buffer.data(), written.data(), written.size());
  const GlobalPointer now = cluster.first.heap->recolour(lent).value();
  const GlobalPointer record = tasks::Queue::make_record(*cluster.home.heap, 1).value();
  CHECK_EQ(cluster.home.server->fail_records(1, 1), 1);  // the round that tells of the loss was faster
  CHECK(cluster.first.peers->complete(record, 1, cluster.first.make_parent({now})).ok());
  cluster.first.peers->flush_frees();
  CHECK(cluster.first.peers->ping(2).ok());
  cluster.fail_over();
  CHECK(cluster.read(lent) == pattern(1000, 1));
}

TEST("a free that comes late spares the newer version that somebody owns at its address") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  const GlobalPointer before = version(1, 10);
  const GlobalPointer after = version(1, 20);
  std::vector<server::StagedReplica> batch{staged(host, before, 5), staged(host, after, 9)};
  CHECK(replicas.commit(batch).ok());
  replicas.confirm(after.address, after.colour);
  static_cast<void>(replicas.promote(1));
  std::vector<GlobalPointer> remote;
  std::vector<Address> dropped;
  replicas.free(before, true, remote, dropped);
  CHECK(!replicas.find(before).ok());
  CHECK(replicas.find(after).ok());
  CHECK(dropped.empty());
  replicas.free(after, true, remote, dropped);
  CHECK(!replicas.find(after).ok());
  CHECK_EQ(dropped.size(), 1);
  CHECK_EQ(host.partition->live_blocks(), 0);
}

TEST("a free takes the version before it along, though its owner knew that one") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  const GlobalPointer before = version(1, 10);
  const GlobalPointer after = version(1, 20);
  std::vector<server::StagedReplica> batch{staged(host, before, 5), staged(host, after, 9)};
  CHECK(replicas.commit(batch).ok());
  replicas.confirm(before.address, before.colour);
  static_cast<void>(replicas.promote(1));
  std::vector<GlobalPointer> remote;
  std::vector<Address> dropped;
  replicas.free(after, true, remote, dropped);
  CHECK(!replicas.find(before).ok());
  CHECK(!replicas.find(after).ok());
  CHECK_EQ(dropped.size(), 1);
  CHECK_EQ(host.partition->live_blocks(), 0);
}

TEST("a batch is entered whole or not at all") {
  Host host(2);
  server::Replicas replicas(*host.heap);
  const std::uint64_t before = host.partition->live_blocks();
  GlobalPointer own = version(3, 1);
  own.address = Address::make(2, 4096);
  std::vector<server::StagedReplica> batch{staged(host, version(1, 1), 1), staged(host, own, 1)};
  CHECK_EQ(replicas.commit(batch).code(), Code::bad_request);
  CHECK(batch.empty());
  CHECK_EQ(replicas.usage().versions, 0);
  CHECK_EQ(host.partition->live_blocks(), before);
}

TEST("a sender that dies in the middle of a batch leaves nothing behind") {
  test::Bench bench;
  const GlobalPointer sample = bench.host.make(pattern(500));
  const Bytes body = block_bytes(bench.host, sample);
  const std::uint64_t before = bench.host.partition->live_blocks();
  {
    test::Visitor visitor(bench.operations);
    for (std::uint64_t place = 1; place < 4; ++place) {
      GlobalPointer primary = version(place, 5);
      primary.extent_bytes = sample.extent_bytes;
      auto header = test::request(wire::Operation::replicate, primary, body.size(), {9, 0, 0, 0});
      header.argument = wire::Replicate::kMore;
      visitor.pipe.say(header);
      visitor.pipe.say(body.data(), body.size());
    }
    visitor.go();
    CHECK_EQ(bench.host.partition->live_blocks(), before + 3);
    CHECK(visitor.pipe.output.empty());
  }
  CHECK_EQ(bench.host.partition->live_blocks(), before);
  CHECK_EQ(bench.operations.replicas().usage().versions, 0);
}

TEST("a lost server's process that still runs can change nothing once its place is taken") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(1000, 1));
  CHECK(cluster.hand_over({value}).ok());
  cluster.second.server->promote(1);
  const GlobalPointer now = cluster.first.heap->recolour(value).value();
  const server::Replica replica{now, now, false};
  CHECK_EQ(cluster.first.peers->replicate_all(2, {&replica, 1}).status().code(), Code::server_lost);
  cluster.fail_over();
  CHECK(cluster.read(value) == pattern(1000, 1));
}

TEST("a read that waits for a lost server gets its value from the successor") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(3000, 4));
  CHECK(cluster.hand_over({value}).ok());
  CHECK(cluster.home.peers->ping(1).ok());
  cluster.first.server.reset();
  Bytes found;
  std::thread reader([&] { found = cluster.read(value); });
  cluster.lose(1, 2, 2);
  cluster.replace(1, 3, cluster.second, 3);
  reader.join();
  CHECK(found == pattern(3000, 4));
}

TEST("where the only replica is lost too, nobody waits") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(3000, 4));
  CHECK(cluster.hand_over({value}).ok());
  cluster.first.server.reset();
  cluster.second.server.reset();
  Code code = Code::ok;
  std::thread reader([&] { code = cluster.home.peers->read_block(value).status().code(); });
  cluster.lose(1, 2, 2);
  cluster.lose(1, 3, kNoServer);
  reader.join();
  CHECK_EQ(code, Code::server_lost);
}

TEST("a record of a task that was sent to a lost server is settled as lost, others are not") {
  Cluster cluster;
  const GlobalPointer lost = tasks::Queue::make_record(*cluster.home.heap, 1).value();
  const GlobalPointer other = tasks::Queue::make_record(*cluster.home.heap, 2).value();
  CHECK_EQ(cluster.home.server->fail_records(1, 1), 1);
  CHECK(tasks::Queue::look(*cluster.home.partition, lost) == tasks::RecordState::lost);
  CHECK(tasks::Queue::look(*cluster.home.partition, other) == tasks::RecordState::pending);
  // What is settled is not sent to the successor, either.
  cluster.fail_over();
  CHECK_EQ(cluster.home.peers->submit(1, cluster.home.make(pattern(10)), lost).code(), Code::server_lost);
  CHECK_EQ(cluster.second.queue->ready(), 0);
}

TEST("a free that a lost server took with it is repeated to its successor") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(1000));
  CHECK(cluster.hand_over({value}).ok());
  CHECK(cluster.home.peers->ping(1).ok());
  cluster.first.server.reset();  // the free below meets nobody
  cluster.home.peers->free_later(value, false);
  cluster.home.peers->flush_frees();
  CHECK_EQ(cluster.versions(), 1);
  cluster.lose(1, 2, 2);
  cluster.replace(1, 3, cluster.second, 3);
  CHECK(eventually([&] { return cluster.versions() == 0; }));
}

TEST("a free after the promotion takes the children along, wherever they are") {
  Cluster cluster;
  const std::uint64_t before = cluster.second.partition->live_blocks();
  const std::uint64_t at_third = cluster.third.partition->live_blocks();
  const GlobalPointer near = cluster.first.make(pattern(10));
  const GlobalPointer far = cluster.third.make(pattern(10));
  const GlobalPointer value = cluster.first.make_parent({near, far});
  CHECK(cluster.hand_over({value}).ok());
  cluster.fail_over();
  cluster.home.peers->free_later(value, false);
  CHECK(eventually([&] { return cluster.second.partition->live_blocks() == before; }));
  CHECK(eventually([&] { return cluster.third.partition->live_blocks() == at_third; }));
}

TEST("what nobody else owned is freed some time after the promotion, the rest and what it owns is not") {
  Cluster cluster;
  const GlobalPointer child = cluster.first.make(pattern(10));
  const GlobalPointer owned = cluster.first.make_parent({child});
  CHECK(cluster.hand_over({owned}).ok());
  // Lent to a task of home's, by a process of the lost server.
  const GlobalPointer lent = cluster.first.make(pattern(20));
  const GlobalPointer task = cluster.first.make_parent({lent});
  cluster.first.block(task.address).children()[0].flags = heap::ChildPointer::kShared;
  const GlobalPointer record = tasks::Queue::make_record(*cluster.first.heap, 0).value();
  CHECK(cluster.first.peers->submit(0, task, record).ok());
  CHECK_EQ(cluster.versions(), 3);
  cluster.home.peers->flush_frees();  // who owns what has been said
  CHECK(eventually([&] { return cluster.second.counted(Counter::messages_served) >= 4; }));
  cluster.fail_over();
  CHECK(cluster.read(lent) == pattern(20));  // its reader has time
  CHECK_EQ(cluster.second.server->free_orphans(1), 1);
  CHECK_EQ(cluster.versions(), 2);
  CHECK(cluster.read(child) == pattern(10));
}

TEST("the children of a parent that its new owner moved away are owned as well") {
  Cluster cluster;
  const GlobalPointer child = cluster.first.make(pattern(10));
  const GlobalPointer owned = cluster.first.make_parent({child});
  CHECK(cluster.hand_over({owned}).ok());
  cluster.home.peers->flush_frees();
  CHECK(eventually([&] { return cluster.second.counted(Counter::messages_served) >= 3; }));
  CHECK(cluster.home.peers->read_block(owned).ok());
  cluster.home.peers->free_later(owned, true);
  CHECK(eventually([&] { return cluster.versions() == 1; }));
  cluster.fail_over();
  CHECK_EQ(cluster.second.server->free_orphans(1), 0);
  CHECK(cluster.read(child) == pattern(10));
}

TEST("a second loss is survived once the successor has put what it took over on its own backup") {
  Cluster cluster;
  std::vector<GlobalPointer> values;
  for (unsigned index = 0; index < 300; ++index) values.push_back(cluster.first.make(pattern(200, index)));
  values.push_back(cluster.first.make(pattern(20'000'000, 9)));  // more than one commit holds
  CHECK(cluster.hand_over(values).ok());
  cluster.fail_over();
  const auto sent = cluster.second.server->protect(3, 1);
  CHECK(sent.ok());
  CHECK_EQ(sent.value().versions, values.size());
  cluster.home.peers->free_later(values[0], false);
  CHECK(eventually([&] { return cluster.third.server->replicas().versions == values.size() - 1; }));
  cluster.second.server.reset();
  cluster.lose(1, 4, 3);
  cluster.lose(2, 2, 3);
  cluster.replace(1, 5, cluster.third, kNoServer);
  cluster.replace(2, 3, cluster.third, kNoServer);
  for (unsigned index = 1; index < 300; ++index) CHECK(cluster.read(values[index]) == pattern(200, index));
  CHECK(cluster.read(values[300]) == pattern(20'000'000, 9));
}

TEST("a new backup is given what the lost one had, and a hand-over that waits for one goes there") {
  Cluster cluster;
  const GlobalPointer value = cluster.first.make(pattern(1000, 1));
  CHECK(cluster.hand_over({value}).ok());
  cluster.second.server.reset();
  const GlobalPointer late = cluster.first.make(pattern(1000, 2));
  Status status(Code::closed, "");
  std::thread sender([&] { status = cluster.hand_over({late}); });
  cluster.row(cluster.first, 1, kNoServer, 3);
  sender.join();
  CHECK(status.ok());
  CHECK_EQ(cluster.third.server->replicas().versions, 1);
  CHECK(cluster.first.server->protect(3, 1).ok());
  CHECK_EQ(cluster.third.server->replicas().versions, 2);
}

TEST("an audit drops what a killed process could not report, and neither what lives nor a pre-image") {
  Cluster cluster;
  const GlobalPointer freed = cluster.first.make(pattern(100));
  const GlobalPointer kept = cluster.first.make(pattern(100));
  const GlobalPointer written = cluster.first.make(pattern(100));
  CHECK(cluster.hand_over({freed, kept, written}).ok());
  CHECK(cluster.first.heap->recolour(written).ok());
  // A process that ends before what it has to say has left.
  const auto process = cluster.first.partition->claim_process(heap::ProcessKind::worker, 1).value();
  heap::Heap silent(*cluster.first.partition, process);
  CHECK(silent.free_shallow(freed).ok());
  CHECK_EQ(cluster.versions(), 3);
  CHECK_EQ(cluster.first.server->drop_unused_replicas(cluster.second.server->replicas_of(1, 100)), 1);
  CHECK(eventually([&] { return cluster.versions() == 2; }));
  cluster.fail_over();
  CHECK(cluster.read(written) == pattern(100));
  CHECK(cluster.read(freed).empty());
}

TEST("a backup without room refuses the whole batch, and a task that needs it is not sent") {
  Cluster cluster;
  Host small(4, 1ULL << 20);
  CHECK(small.serve().ok());
  cluster.first.know(small);
  cluster.row(cluster.first, 1, kNoServer, 4);
  const std::uint64_t before = small.partition->live_blocks();
  const GlobalPointer task = cluster.first.make_parent(
      {cluster.first.make(pattern(1000)), cluster.first.make(pattern(3 << 20)), cluster.first.make(pattern(10))});
  const GlobalPointer record = tasks::Queue::make_record(*cluster.first.heap, 0).value();
  const Status status = cluster.first.peers->submit(0, task, record);
  CHECK_EQ(status.code(), Code::out_of_memory);
  CHECK(status.detail().find("server 4") != std::string::npos);
  CHECK_EQ(cluster.home.queue->ready(), 0);
  CHECK_EQ(small.partition->live_blocks(), before);
  // It was marked before it was sent: whoever dies in between leaves a block whose free is told.
  const heap::ChildPointer tried = cluster.first.block(task.address).children()[0];
  CHECK_EQ(cluster.first.block(Address(tried.address)).header().flags.load(), heap::kHasReplica);
  // A result goes home all the same: its caller waits.
  CHECK(cluster.hand_over({cluster.first.make(pattern(3 << 20))}).ok());
  CHECK_EQ(small.server->replicas().versions, 0);
  CHECK_EQ(cluster.first.counted(Counter::results_unreplicated), 1);
}
