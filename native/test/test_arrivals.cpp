// Arrivals: who reads the ring of a process learns of every record that completed, or that it may have missed some.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <set>
#include <thread>

#include "base/kill_point.hpp"
#include "tasks/arrivals.hpp"
#include "test/harness.hpp"
#include "test/host.hpp"

namespace drust::test {
namespace {

using tasks::Arrivals;
using tasks::Queue;
using tasks::RecordState;

GlobalPointer make_record(Host& host) { return Queue::make_record(*host.heap, 3).value(); }

void complete(Host& host, const GlobalPointer& record) {
  CHECK(Queue::complete(*host.heap, record, RecordState::lost, {}) == tasks::Delivery::applied);
}

TEST("what completes is told in order, once to each reader, and not to one that came later") {
  Host host(3);
  Arrivals first(*host.partition, host.heap->process());
  Arrivals second(*host.partition, host.heap->process());
  std::vector<Address> made;
  for (int count = 0; count < 5; ++count) {
    const GlobalPointer record = make_record(host);
    made.push_back(record.address);
    complete(host, record);
  }
  for (Arrivals* reader : {&first, &second}) {
    const auto news = reader->wait(0);
    CHECK(news.ok() && !news.value().has_missed && news.value().records == made);
    CHECK(reader->wait(0).value().records.empty());
  }
  Arrivals late(*host.partition, host.heap->process());
  CHECK(late.wait(0).value().records.empty());
}

TEST("a reader that was overtaken is told that it missed some, and then goes on with what is left") {
  Host host(3);
  Arrivals reader(*host.partition, host.heap->process());
  const GlobalPointer record = make_record(host);
  for (std::uint32_t count = 0; count < kArrivalsKept + 10; ++count)
    Arrivals::tell(*host.partition, host.heap->process(), record.address);
  const auto news = reader.wait(0);
  CHECK(news.ok() && news.value().has_missed);
  CHECK_EQ(news.value().records.size(), kArrivalsKept);
  complete(host, record);
  const auto next = reader.wait(0);
  CHECK(next.ok() && !next.value().has_missed && next.value().records.size() == 1);
}

TEST("an entry whose writer died is given up, and the reader told that it may have missed it") {
  Host host(3);
  Arrivals reader(*host.partition, host.heap->process());
  const GlobalPointer record = make_record(host);
  std::uint32_t point = 0;
  while (std::string_view(kKillPoints[point]) != "arrivals.tell.claimed") ++point;
  const pid_t pid = ::fork();
  if (pid == 0) {
    arm_kill_point(point, 1, KillAction::kill);
    // The mapping of a parent is not its child's: through one of its own.
    auto mapped = heap::Partition::attach(::dup(host.partition->memfd()));
    Arrivals::tell(*mapped.value(), host.heap->process(), record.address);
    ::_exit(0);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  const auto news = reader.wait(10 * kWaitSliceMs);
  CHECK(news.ok() && news.value().has_missed);
  complete(host, record);
  const auto next = reader.wait(0);
  CHECK(next.ok() && !next.value().has_missed && next.value().records.size() == 1);
}

TEST("a reader that sleeps is woken, by a completion, by a stop and by the end of the partition") {
  Host host(3);
  constexpr std::size_t kEach = 2000;
  std::vector<GlobalPointer> records;
  for (std::size_t count = 0; count < 2 * kEach; ++count) records.push_back(make_record(host));
  Arrivals reader(*host.partition, host.heap->process());
  std::vector<std::thread> completers;
  for (std::size_t half = 0; half < 2; ++half) {
    completers.emplace_back([&, half] {
      for (std::size_t at = half; at < records.size(); at += 2) complete(host, records[at]);
    });
  }
  std::set<std::uint64_t> told;
  bool has_missed = false;
  while (told.size() < records.size() && !has_missed) {
    const auto news = reader.wait(20'000);
    if (!CHECK(news.ok() && (news.value().has_missed || !news.value().records.empty()))) break;
    for (const Address record : news.value().records) told.insert(record.raw());
    has_missed = news.value().has_missed;
  }
  for (std::thread& thread : completers) thread.join();
  if (!has_missed) CHECK_EQ(told.size(), records.size());
  while (!reader.wait(0).value().records.empty()) {
  }
  std::thread stopper([&] { reader.stop(); });
  CHECK(reader.wait(20'000).status().code() == Code::closed);
  stopper.join();
  Arrivals other(*host.partition, host.heap->process());
  std::thread closer([&] { host.partition->close(); });
  CHECK(other.wait(20'000).status().code() == Code::closed);
  closer.join();
}

}  // namespace
}  // namespace drust::test
