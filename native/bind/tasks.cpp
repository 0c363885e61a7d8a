// _core.Runtime, of tasks: taking one back; and _core.Arrivals: waiting for any of many.
#include <nanobind/nanobind.h>

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
    if (server != runtime.partition->server()) return runtime.peers->withdraw(server, record);
    const std::optional<tasks::Entry> entry = runtime.queue->withdraw(record);
    if (!entry) return Status(Code::not_found, "no such task waits here");
    static_cast<void>(runtime.queue->returned(*entry, {}));  // if this process dies on the way, it is not run again
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

}  // namespace

void register_tasks(nb::module_& module, nb::class_<Runtime>& runtime) {
  runtime.def("withdraw", &withdraw, nb::arg("server"), nb::arg("record"))
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
