/* `uvirt doctor`: what this host offers, and what each lack costs. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/doctor.h"
#include "vmm/vmm.h"

static const char *const states[] = {[FINDING_FINE] = "ok", [FINDING_LACK] = "lack", [FINDING_FAIL] = "FAIL"};

static void print_help(void) {
  puts("Usage: uvirt doctor [--json]\n\n"
       "Looks at this host: whether uvirt works here, and what it lacks and what that costs.\n\n"
       "  --json   the same as JSON\n"
       "  --help   print this\n\n"
       "Exit codes: 0 uvirt works, 1 it does not, 2 bad command line.");
}

static void print_text(const struct check *c, const struct finding *f) {
  printf("%-5s %-24s %s\n", states[f->state], c->name, f->value);
  if (f->cost) printf("%31s%s\n", "", f->cost);
}

static json_t *to_json(const struct check *c, const struct finding *f) {
  json_t *o = json_object();
  json_object_set_new(o, "name", json_string(c->name));
  json_object_set_new(o, "state", json_string(states[f->state]));
  json_object_set_new(o, "value", json_string_nocheck(f->value));
  if (f->cost) json_object_set_new(o, "cost", json_string(f->cost));
  return o;
}

static int examine(bool json) {
  json_t *list = json_array();
  bool works = true;
  for (unsigned i = 0; i < doctor_check_count; i++) {
    struct finding f = {.state = FINDING_FINE};
    doctor_checks[i].look(&f);
    works &= f.state != FINDING_FAIL;
    if (json)
      json_array_append_new(list, to_json(&doctor_checks[i], &f));
    else
      print_text(&doctor_checks[i], &f);
  }
  if (json) {
    json_t *o = json_object();
    json_object_set_new(o, "works", json_boolean(works));
    json_object_set(o, "checks", list);
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(o);
  } else {
    puts(works ? "\nuvirt works on this host." : "\nuvirt does not work on this host.");
  }
  json_decref(list);
  return works ? 0 : 1;
}

int cmd_doctor(int argc, char **argv) {
  if (asks_for_help(argc, argv)) {
    print_help();
    return 0;
  }
  bool json = argc == 2 && strcmp(argv[1], "--json") == 0;
  if (argc > 1 && !json) {
    complain("`uvirt doctor` knows only --json, not '%s'", argv[argc > 2 && strcmp(argv[1], "--json") == 0 ? 2 : 1]);
    return VMM_END_USAGE;
  }
  return examine(json);
}
