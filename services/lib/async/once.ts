/**
 * Calls `load` when first asked and keeps what it gives; calls at the same time share one load. After a failure, or
 * where there was nothing to be had, the next call tries again.
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
