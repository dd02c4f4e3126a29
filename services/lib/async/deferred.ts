/** A promise that others settle: `Promise.withResolvers`, which Node 20 does not have. */

/** A promise with its two handles. Nobody has to wait for it: a rejection that nobody sees is not an error. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (reason: unknown) => void;

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.promise.catch(() => {});
  }
}
