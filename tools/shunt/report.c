/* SPDX-License-Identifier: Apache-2.0
 *
 * The report: everything measured, as one JSON object. Its fields are documented in the man page.
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

int report_open(struct report_file *f, const char *path)
{
    int fd = output_open(&f->output, path);

    f->file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f->file)
        return 0;
    if (fd >= 0)
        close(fd);
    output_abandon(&f->output);
    return EXIT_FAILED;
}

void report_abandon(struct report_file *f)
{
    if (f->file)
        fclose(f->file);
    f->file = NULL;
    output_abandon(&f->output);
}

static json_t *integer(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static json_t *node_json(const struct node_summary *n)
{
    const struct shunt_stats *s = &n->stats;
    json_t *o = json_object();
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"rank", s->rank},
        {"threads", s->threads},
        {"chunk", s->chunk},
        {"slot_count", s->slot_count},
        {"slots_used", s->slots_used},
        {"steps", s->steps},
        {"decode_steps", s->decode_steps},
        {"prompt_tokens", s->prompt_tokens},
        {"tokens", s->tokens},
        {"calls_local", s->calls_local},
        {"calls_peer", s->calls_peer},
        {"calls_read", s->calls_read},
        {"bytes_startup", s->bytes_startup},
        {"bytes_demand", s->bytes_demand},
        {"bytes_speculative", s->bytes_speculative},
        {"bytes_placement", s->bytes_placement},
        {"reads_demand", s->reads_demand},
        {"reads_speculative", s->reads_speculative},
        {"reads_placement", s->reads_placement},
        {"speculative_useful", s->speculative_useful},
        {"speculative_late", s->speculative_late},
        {"speculative_wasted", s->speculative_wasted},
        {"speculative_pending", s->speculative_pending},
        {"rows_sent", s->rows_sent},
        {"rows_received", s->rows_received},
        {"bytes_sent", s->bytes_sent},
        {"bytes_received", s->bytes_received},
        {"wait_read_ns", (uint64_t)s->wait_read_ns},
        {"wait_peer_ns", (uint64_t)s->wait_peer_ns},
        {"placement_epoch", s->placement_epoch},
        {"placed_count", s->placed_count},
        {"memory_bytes", s->memory_bytes},
        {"memory_limit_bytes", s->memory_limit_bytes},
        {"vm_hwm_bytes", n->vm_hwm_bytes},
    };

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        json_object_set_new(o, fields[i].name, integer(fields[i].value));
    json_object_set_new(o, "kernels", json_string(n->kernels));
    json_object_set_new(o, "io", json_string(n->io));
    json_object_set_new(o, "io_direct", json_boolean(s->io_direct));
    json_object_set_new(o, "transport", json_string(n->transport));
    return o;
}

static json_t *sequence_json(const struct results *r, uint32_t p)
{
    static const char *const reasons[] = {"none", "eos", "length", "stop", "cancelled", "error"};
    const struct outcome *o = &r->outcomes[p];
    json_t *j = json_object();
    json_t *ids = json_array();
    char digest[20];

    for (uint32_t i = 0; i < r->token_counts[p]; i++)
        json_array_append_new(ids, json_integer(r->tokens[p][i]));
    snprintf(digest, sizeof(digest), "%016llx", (unsigned long long)o->digest);
    json_object_set_new(j, "rank", integer(r->first_rank + p % r->node_count));
    json_object_set_new(j, "prompt_tokens", integer(o->prompt_tokens));
    json_object_set_new(j, "tokens", integer(o->tokens));
    json_object_set_new(j, "ttft_ns", integer((uint64_t)o->ttft_ns));
    json_object_set_new(j, "decode_ns", integer((uint64_t)o->decode_ns));
    json_object_set_new(j, "end",
                        json_string(reasons[o->reason <= SHUNT_END_ERROR ? o->reason : 0]));
    json_object_set_new(j, "logits_digest", json_string(digest));
    json_object_set_new(j, "ids", ids);
    return j;
}

int report_write(struct report_file *f, const char *model, const struct results *r)
{
    json_t *o = json_object();
    json_t *nodes = json_array();
    json_t *sequences = json_array();
    bool ok;

    for (uint32_t n = 0; n < r->node_count; n++)
        if (r->has_node[n])
            json_array_append_new(nodes, node_json(&r->nodes[n]));
    for (uint32_t p = 0; p < r->prompt_count; p++)
        if (r->ended[p])
            json_array_append_new(sequences, sequence_json(r, p));
    json_object_set_new(o, "report_version", json_integer(1));
    json_object_set_new(o, "shunt_version", json_string(shunt_version()));
    json_object_set_new(o, "model", json_string(model));
    json_object_set_new(o, "nodes", nodes);
    json_object_set_new(o, "sequences", sequences);
    json_object_set_new(o, "identical_to_one_node",
                        r->identical < 0 ? json_null() : json_boolean(r->identical));
    fflush(stdout); /* the report may go there as well */
    ok = json_dumpf(o, f->file, JSON_INDENT(1)) == 0 && fputc('\n', f->file) != EOF;
    json_decref(o);
    ok &= fflush(f->file) == 0;
    if (ok && f->output.temporary)
        ok = fsync(fileno(f->file)) == 0;
    ok &= fclose(f->file) == 0;
    f->file = NULL;
    if (!ok)
        complain("%s: the report could not be written: %s", f->output.path, strerror(errno));
    return ok ? output_commit(&f->output) : EXIT_FAILED;
}
