/**
 * A binary heap whose items may change their place in the order, or leave, in a time that is logarithmic in their
 * number. Pure.
 */
export class Heap<T> {
  readonly #before: (a: T, b: T) => boolean;
  readonly #items: T[] = [];
  /** Where each item stands in the array. */
  readonly #places = new Map<T, number>();

  /** @param before a strict order. It may change only for an item that {@link moved} is called with next. */
  constructor(before: (a: T, b: T) => boolean) {
    this.#before = before;
  }

  get size(): number {
    return this.#items.length;
  }

  /** The item that comes before all others, without one of them if so asked. */
  first(but?: T): T | undefined {
    if (this.#items[0] !== but) return this.#items[0];
    return this.#items[this.#earlierChild(0)];
  }

  add(item: T): void {
    this.#put(item, this.#items.length);
    this.moved(item);
  }

  /** An item that is not in the heap is passed over. */
  remove(item: T): void {
    const place = this.#places.get(item);
    if (place === undefined) return;
    this.#places.delete(item);
    const last = this.#items.pop()!;
    if (last === item) return;
    this.#put(last, place);
    this.moved(last);
  }

  /** An item may have come to stand elsewhere in the order. */
  moved(item: T): void {
    let place = this.#places.get(item)!;
    for (
      let parent = (place - 1) >> 1;
      place > 0 && this.#before(item, this.#items[parent]!);
      parent = (place - 1) >> 1
    ) {
      this.#put(this.#items[parent]!, place);
      place = parent;
    }
    for (let child = this.#earlierChild(place); child < this.#items.length; child = this.#earlierChild(place)) {
      if (!this.#before(this.#items[child]!, item)) break;
      this.#put(this.#items[child]!, place);
      place = child;
    }
    this.#put(item, place);
  }

  /** Of the two places below one, that of the earlier item; a place behind the last item where there is none. */
  #earlierChild(place: number): number {
    const left = 2 * place + 1;
    const right = left + 1;
    return right < this.#items.length && this.#before(this.#items[right]!, this.#items[left]!) ? right : left;
  }

  #put(item: T, place: number): void {
    this.#items[place] = item;
    this.#places.set(item, place);
  }
}
