/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/outbox.h"

#include <string.h>

bool shunt_outbox_has_room(const struct shunt_outbox *o, uint32_t bytes)
{
    uint32_t tail = atomic_load_explicit(&o->tail, memory_order_relaxed);
    /* Pairs with the release in take: what lies before head has been copied out. */
    uint32_t head = atomic_load_explicit(&o->head, memory_order_acquire);

    return o->capacity - (tail - head) >= bytes;
}

static void copy_in(struct shunt_outbox *o, uint32_t at, const void *src, size_t len)
{
    uint32_t off = at & (o->capacity - 1);
    size_t first = len < o->capacity - off ? len : o->capacity - off;

    memcpy(o->bytes + off, src, first);
    memcpy(o->bytes, (const unsigned char *)src + first, len - first);
}

static void copy_out(const struct shunt_outbox *o, uint32_t at, void *dst, size_t len)
{
    uint32_t off = at & (o->capacity - 1);
    size_t first = len < o->capacity - off ? len : o->capacity - off;

    memcpy(dst, o->bytes + off, first);
    memcpy((unsigned char *)dst + first, o->bytes, len - first);
}

void shunt_outbox_put(struct shunt_outbox *o, const struct shunt_outbox_record *record,
                      const char *text)
{
    uint32_t tail = atomic_load_explicit(&o->tail, memory_order_relaxed);

    copy_in(o, tail, record, sizeof(*record));
    if (record->text_len)
        copy_in(o, tail + (uint32_t)sizeof(*record), text, record->text_len);
    /* Pairs with the acquire in take. */
    atomic_store_explicit(&o->tail, tail + shunt_outbox_bytes(record->text_len),
                          memory_order_release);
}

bool shunt_outbox_take(struct shunt_outbox *o, struct shunt_outbox_record *record, char *text)
{
    uint32_t head = atomic_load_explicit(&o->head, memory_order_relaxed);

    if (head == atomic_load_explicit(&o->tail, memory_order_acquire))
        return false;
    copy_out(o, head, record, sizeof(*record));
    copy_out(o, head + (uint32_t)sizeof(*record), text, record->text_len);
    atomic_store_explicit(&o->head, head + shunt_outbox_bytes(record->text_len),
                          memory_order_release);
    return true;
}

void shunt_outbox_reset(struct shunt_outbox *o)
{
    atomic_store_explicit(&o->head, 0, memory_order_relaxed);
    atomic_store_explicit(&o->tail, 0, memory_order_relaxed);
}
