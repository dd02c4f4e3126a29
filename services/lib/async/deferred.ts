/**
 * A promise that is settled from outside: `Promise.withResolvers`, which Node 20 does not have. A rejection that nobody
 * waits for is not reported as an error.
 */
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
