/**
 * Calls `load` on the first call and keeps the result; concurrent calls share one load. After a failure, or when the
 * result was undefined, the next call loads again.
 */
export function once<T>(load: () => Promise<T>): () => Promise<T> {
  let loading: Promise<T> | undefined;
  return () => {
    const attempt =
      loading ??
      load().then(
        (value) => {
          if (value === undefined) loading = undefined;
          return value;
        },
        (error) => {
          loading = undefined;
          throw error;
        },
      );
    loading = attempt;
    return attempt;
  };
}
