// Every state of one replicated object and the loss of its server (model/replica_model.hpp). Counts are pinned
// as in test_explorer.cpp.
#include "test/explorations.hpp"
#include "test/model/replica_model.hpp"

namespace drust::test {
namespace {

using replica::Bug;
using replica::Config;

void check_holds(const char* title, const Config& config, const Pinned& pinned) {
  check_every_state(title, replica::ReplicaModel(config), pinned);
}

void check_found(const char* title, Config config, const char* claim) {
  config.only = claim;
  check_broken_rule(title, replica::ReplicaModel(config), claim);
}

constexpr const char* kSurvives = "what its owner saw is there, on the server or on its backup";
constexpr const char* kNothingStays = "when all is quiet nothing is left, on the server or on its backup";

TEST("every version that its owner has seen survives the loss of its server") {
  const Config config{.tasks = 3};
  check_holds("replicas", config, {76'349, 337'918, 451});
}

TEST("a version written in place survives beside the one before it") {
  const Config config{.large = true, .tasks = 3};
  check_holds("replicas in place", config, {22'290, 105'277, 142});
}

// --- broken on purpose: each must be found ---

TEST("a hand-over that leaves before the backup has the version is found") {
  check_found("before put", {.bug = Bug::HandOverBeforePut}, kSurvives);
}

TEST("a free that is not forwarded to the backup is found as a leak") {
  check_found("not forwarded", {.bug = Bug::FreeNotForwarded}, kNothingStays);
}

TEST("a notice without a stamp is found when its address is used again") {
  check_found("no stamp", {.tasks = 3, .bug = Bug::NoticeIgnoresStamp}, kSurvives);
}

TEST("marking a block only when the backup has answered is found as a leak when its worker dies") {
  check_found("marked after", {.bug = Bug::MarkedAfterPut}, kNothingStays);
}

TEST("a version that comes after the notice of its end and is taken is found as a leak") {
  check_found("notice forgotten", {.bug = Bug::NoticeForgotten}, kNothingStays);
}

TEST("a backup that keeps one version of an address is found") {
  check_found("one version", {.large = true, .bug = Bug::OneVersionKept}, kSurvives);
}

TEST("dropping the older version before the owner has heard of the newer is found") {
  check_found("older dropped", {.large = true, .bug = Bug::OlderDroppedEarly}, kSurvives);
}

TEST("a version taken after the promotion is found as a leak") {
  check_found("put after promotion", {.bug = Bug::PutAfterPromotion}, kNothingStays);
}

TEST("a notice of the lost server that counts after the promotion is found as a leak") {
  check_found("notice after promotion", {.tasks = 3, .bug = Bug::NoticeAfterPromotion}, kNothingStays);
}

TEST("a promotion while a completion may still count is found") {
  check_found("unsettled", {.bug = Bug::PromotedUnsettled}, kSurvives);
}

TEST("freeing what nobody confirmed while a confirmation is on its way is found") {
  check_found("unconfirmed", {.bug = Bug::OrphansUnconfirmed}, kSurvives);
}

TEST("a free that died with the server and is not repeated is found as a leak") {
  check_found("not repeated", {.bug = Bug::FreesNotRepeated}, kNothingStays);
}

TEST("a free that takes the newer version at its address with it is found") {
  check_found("takes all", {.tasks = 3, .bug = Bug::FreeTakesAll}, kSurvives);
}

}  // namespace
}  // namespace drust::test
