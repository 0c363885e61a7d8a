// _core.Runtime, of tasks: taking one back; and _core.Arrivals: waiting for any of many.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "bind/pointer.hpp"
#include "bind/runtime.hpp"
#include "tasks/arrivals.hpp"

namespace drust::bind {

void register_tasks(nb::module_& module, nb::class_<Runtime>& runtime);

namespace {

// Takes back the task of a record of this process, if no worker has begun it: 0 messages here, 1 round trip elsewhere.
// Its block is gone then, and what it would have moved.
bool withdraw(Runtime& runtime, ServerId server, nb::tuple record_tuple) {
  const GlobalPointer record = to_pointer(record_tuple);
  Status status = [&]() -> Status {
    nb::gil_scoped_release unlocked;
    if (server != runtime.partition->server()) {
      // If this process dies before it has taken in the answer, its reaper asks there.
      if (auto* waiting = tasks::Queue::find_record(*runtime.partition, record); waiting != nullptr)
        waiting->call.store(tasks::Record::kCallUnsure);
      return runtime.peers->withdraw(server, record);
    }
    const std::optional<tasks::Entry> entry = runtime.queue->withdraw(record);
    if (!entry) return Status(Code::not_found, "no such task waits here");
    static_cast<void>(runtime.queue->returned(*entry, {}));  // if this process dies on the way, it is not run again
    static_cast<void>(tasks::Queue::complete(*runtime.heap, record, tasks::RecordState::lost, {}));
    release_block(entry->task, OnRelease::free_tree, 0);
    runtime.queue->finish(*entry);
    return {};
  }();
  if (status.code() == Code::not_found) return false;
  unwrap(status);
  return true;
}

// The task of a record of this process, to be run by whoever is about to wait for it, if no worker has begun it.
nb::object take_task_of(Runtime& runtime, nb::tuple record) {
  const std::optional<tasks::Entry> entry = runtime.queue->withdraw(to_pointer(record));
  return entry ? nb::cast(TaskEntry{*entry}) : nb::none();
}

// Whether a server has the task of this record, queued or running: 0 messages here, 1 round trip elsewhere.
bool knows_task(Runtime& runtime, ServerId server, nb::tuple record_tuple) {
  const GlobalPointer record = to_pointer(record_tuple);
  Status status = [&]() -> Status {
    nb::gil_scoped_release unlocked;
    if (server != runtime.partition->server()) return runtime.peers->inquire(server, record);
    return runtime.queue->knows(record) ? Status() : Status(Code::not_found, "no such task is here");
  }();
  if (status.code() == Code::not_found) return false;
  unwrap(status);
  return true;
}

// Addresses of records that have completed, or None if some may be missing. Empty when time ran out. No message.
nb::object wait_arrivals(tasks::Arrivals& arrivals, std::uint32_t timeout_ms) {
  Result<tasks::Arrivals::News> waited = [&] {
    nb::gil_scoped_release unlocked;
    return arrivals.wait(timeout_ms);
  }();
  nb::list records;
  if (!waited.ok()) {
    if (waited.status().code() != Code::interrupted) raise(waited.status());
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    return records;
  }
  if (waited.value().has_missed) return nb::none();
  for (const Address record : waited.value().records) records.append(record.raw());
  return records;
}

// Queues task blocks as submit() does: 0 messages here, elsewhere 1 round trip for each kSubmitsPerBatchMax of them.
// How many are queued: the first ones. An error is raised if none is.
std::size_t submit_many(Runtime& runtime, ServerId server, nb::list tasks_list, std::uint32_t retries,
                        bool is_bound) {
  if (retries > kRetriesMax) throw nb::value_error("retry= is at most 1000");
  std::vector<server::Peers::Submission> all;
  for (nb::handle each : tasks_list) {
    const auto pair = nb::cast<nb::tuple>(each);
    all.push_back({to_pointer(nb::cast<nb::tuple>(pair[0])), to_pointer(nb::cast<nb::tuple>(pair[1])), retries});
  }
  const bool is_here = server == runtime.partition->server();
  const auto kind = is_here ? heap::OwnerKind::queue : heap::OwnerKind::in_transit;
  const std::uint64_t carried = heap::owner_word(kind, is_here ? heap::ProcessId{} : runtime.process);
  const std::uint64_t ours = heap::owner_word(heap::OwnerKind::process, runtime.process);
  std::size_t done = 0;
  Status status = [&]() -> Status {
    nb::gil_scoped_release unlocked;
    while (done < all.size()) {
      const auto run = std::span(all).subspan(done, std::min<std::size_t>(all.size() - done, kSubmitsPerBatchMax));
      for (const auto& each : run) {
        if (auto* record = tasks::Queue::find_record(*runtime.partition, each.record); record != nullptr)
          record->call.store(each.task.address.raw());
        runtime.heap->set_owner(each.task, carried);
      }
      std::size_t queued = 0;
      Status sent;
      if (is_here) {
        for (; queued < run.size() && sent.ok(); queued += sent.ok() ? 1 : 0) {
          const auto pushed = runtime.queue->push(run[queued].task, run[queued].record, {retries, is_bound, 0});
          if (!pushed.ok()) sent = pushed.status();
        }
      } else {
        const Result<std::size_t> told = runtime.peers->submit_all(server, run);
        sent = told.ok() ? Status() : told.status();
        queued = told.ok() ? told.value() : 0;
      }
      for (std::size_t index = 0; index < run.size(); ++index) {
        if (index >= queued) {
          runtime.heap->set_owner(run[index].task, ours);
        } else {
          if (!is_here) release_block(run[index].task, OnRelease::free_shallow, 0);
          if (auto* record = tasks::Queue::find_record(*runtime.partition, run[index].record); record != nullptr)
            record->call.store(tasks::Record::kCallArrived);
        }
      }
      if (!is_here && queued != 0) runtime.partition->note_sent(server, queued);
      done += queued;
      if (!sent.ok()) return sent;
      if (queued < run.size()) return Status(Code::full, "the queue there has no room");
    }
    return {};
  }();
  if (done == 0) unwrap(status);
  return done;
}

}  // namespace

void register_tasks(nb::module_& module, nb::class_<Runtime>& runtime) {
  runtime.def("withdraw", &withdraw, nb::arg("server"), nb::arg("record"))
      .def("tell_arrival",
           [](const Runtime& r, std::uint64_t record) {
             tasks::Arrivals::tell(*r.partition, r.process, Address(record));
           },
           nb::arg("record"))
      .def("submit_many", &submit_many, nb::arg("server"), nb::arg("tasks"), nb::arg("retries") = 0,
           nb::arg("bound") = false)
      .def("offer", [](const Runtime& r, std::uint64_t ticket) { r.queue->offer(ticket); }, nb::arg("ticket"))
      .def("take_task_of", &take_task_of, nb::arg("record"))
      .def("knows_task", &knows_task, nb::arg("server"), nb::arg("record"));

  nb::class_<tasks::Arrivals>(module, "Arrivals", "Which tasks of this process have ended, from now on.")
      .def("__init__",
           [](tasks::Arrivals* self, const Runtime& runtime) {
             new (self) tasks::Arrivals(*runtime.partition, runtime.process);
           },
           nb::arg("runtime"))
      .def("stop", &tasks::Arrivals::stop)
      .def("wait", &wait_arrivals, nb::arg("timeout_ms"));
}

}  // namespace drust::bind
