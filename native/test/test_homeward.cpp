// Completions that travel together while their worker goes on.
#include <thread>
#include <vector>

#include "server/deliver.hpp"
#include "server/homeward.hpp"
#include "test/harness.hpp"
#include "test/host.hpp"

using namespace drust;
using namespace drust::heap;
using tasks::Queue;
using tasks::RecordState;
using test::Host;
using test::pattern;

namespace {

constexpr ServerId kJoiner = 1;
constexpr ServerId kWorker = 2;
constexpr std::size_t kTasks = 200;

// A joiner's server and a worker's, with tasks of the one in the queue of the other.
struct Scene {
  Host home{kJoiner, 16ULL << 20};
  Host away{kWorker};
  server::Homeward homeward{*away.heap, *away.queue, *away.peers};
  std::vector<GlobalPointer> records;
  explicit Scene(std::size_t count = kTasks) {
    CHECK(home.serve().ok() && away.serve().ok());
    home.know(away);
    away.know(home);
    for (std::size_t number = 0; number < count; ++number) {
      records.push_back(Queue::make_record(*home.heap, kWorker).value());
      CHECK(away.queue->push(away.make(pattern(10), tasks::kTaskCodec), records.back()).ok());
    }
  }
  // Runs one, and says whether its completion was taken over.
  bool run_one() {
    const auto entry = away.queue->take(0);
    if (!CHECK(entry.ok())) return false;
    const GlobalPointer completion = away.make(pattern(100), tasks::kCompletionCodec);
    CHECK(away.queue->returned(entry.value(), completion));
    CHECK(away.heap->free_shallow(entry.value().task).ok());
    if (homeward.take(entry.value(), completion)) return true;
    CHECK(server::deliver(*away.heap, *away.peers, entry.value().record, RecordState::done, completion, false).ok());
    away.queue->finish(entry.value());
    return false;
  }
  [[nodiscard]] bool has_come(std::size_t number) {
    const auto done = Queue::wait(*home.partition, records[number], 5000);
    return done.ok() && done.value()->state.load() == RecordState::done &&
           home.bytes(done.value()->completion()) == pattern(100);
  }
};

}  // namespace

TEST("what a busy worker's tasks return arrives, many in a message, and is finished") {
  Scene scene;
  std::size_t taken = 0;
  for (std::size_t number = 0; number < kTasks; ++number) taken += scene.run_one() ? 1 : 0;
  CHECK(taken >= kTasks - 1);
  for (std::size_t number = 0; number < kTasks; ++number) CHECK(scene.has_come(number));
  CHECK(scene.homeward.close());
  CHECK_EQ(scene.away.queue->running(), 0U);
  CHECK_EQ(scene.away.partition->live_blocks(), 0U);
  CHECK(scene.away.counted(Counter::complete_messages) < kTasks);
}

TEST("a worker without another task takes the completion home himself") {
  Scene scene(1);
  CHECK(!scene.run_one());
  CHECK(scene.has_come(0));
}

TEST("a task of this server is no matter of the way home") {
  Host here(kWorker);
  server::Homeward homeward(*here.heap, *here.queue, *here.peers);
  const GlobalPointer record = Queue::make_record(*here.heap, kWorker).value();
  for (int number = 0; number < 2; ++number) CHECK(here.queue->push(here.make(pattern(10)), record).ok());
  const auto entry = here.queue->take(0);
  CHECK(entry.ok() && !homeward.take(entry.value(), here.make(pattern(10))));
}

TEST("what a server that is silent for a while does not take is sent again, and arrives once") {
  Scene scene(20);
  const std::uint16_t port = scene.home.server->port();
  scene.home.server.reset();
  for (int number = 0; number < 19; ++number) CHECK(scene.run_one());
  while (scene.away.queue->running() != 19) std::this_thread::yield();  // nothing was given up
  CHECK(scene.home.serve(2, port).ok());
  for (std::size_t number = 0; number < 19; ++number) CHECK(scene.has_come(number));
  while (scene.away.queue->running() != 0) std::this_thread::yield();
  CHECK(scene.homeward.close());
}

TEST("closing leaves what a silent server did not take in its entries, for the reaper") {
  Scene scene(3);
  scene.home.server.reset();
  CHECK(scene.run_one() && scene.run_one());
  CHECK(!scene.homeward.close());
  CHECK_EQ(scene.away.queue->running(), 2U);
}

TEST("of a batch the joiner without room is told so, and the others have theirs") {
  Scene scene(3);
  const auto big = [&] {
    const auto entry = scene.away.queue->take(0);
    const GlobalPointer completion = scene.away.make(pattern(20ULL << 20), tasks::kCompletionCodec);
    CHECK(scene.away.queue->returned(entry.value(), completion));
    CHECK(scene.away.heap->free_shallow(entry.value().task).ok());
    return scene.homeward.take(entry.value(), completion);
  };
  CHECK(scene.run_one());
  CHECK(big());
  scene.run_one();
  CHECK(scene.has_come(0));
  CHECK(scene.has_come(2));
  const auto refused = Queue::wait(*scene.home.partition, scene.records[1], 5000);
  CHECK(refused.ok() && refused.value()->state.load() == RecordState::refused);
  CHECK(scene.homeward.close());
  CHECK_EQ(scene.away.partition->live_blocks(), 0U);
}
