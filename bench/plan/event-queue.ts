/**
 * Events in order of time, kept in a binary heap. Events of equal time come in the order in which they were pushed, so
 * that runs repeat exactly.
 */

interface TimedEvent<T> {
  readonly at: number;
  readonly order: number;
  readonly value: T;
}

export class EventQueue<T> {
  readonly #heap: TimedEvent<T>[] = [];
  #pushed = 0;

  push(at: number, value: T): void {
    const heap = this.#heap;
    heap.push({ at, order: this.#pushed++, value });
    let i = heap.length - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(heap[i]!, heap[parent]!)) return;
      [heap[i], heap[parent]] = [heap[parent]!, heap[i]!];
      i = parent;
    }
  }

  /** Removes and returns the next event; undefined if there is none. */
  pop(): { at: number; value: T } | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || top === last) return top;
    heap[0] = last;
    for (let i = 0; ; ) {
      const left = 2 * i + 1;
      const right = left + 1;
      let least = i;
      if (left < heap.length && before(heap[left]!, heap[least]!)) least = left;
      if (right < heap.length && before(heap[right]!, heap[least]!)) least = right;
      if (least === i) return top;
      [heap[i], heap[least]] = [heap[least]!, heap[i]!];
      i = least;
    }
  }
}

const before = <T>(a: TimedEvent<T>, b: TimedEvent<T>) => a.at < b.at || (a.at === b.at && a.order < b.order);
