/**
 * Spans of this process, for whoever follows one request through all processes (OpenTelemetry). Off unless the usual
 * variables (`OTEL_…`) say otherwise; then nothing of OpenTelemetry is loaded, and {@link beginTrace} gives undefined.
 *
 * Times are ms of the monotonic clock (`performance.now()`), as in the timeline: spans are made of what it has stamped.
 * Attributes name figures and choices, never text of a client.
 */
import { ServingError } from './errors.ts';
import { type Logger, throttled } from './log.ts';
import type { OtelVariables, Span, SpanStart, TraceHeaders, Tracer } from './span.ts';

/** Time that the export of the last spans gets when a process stops, in ms. */
const CLOSE_MS = 2_000;
/** At most one line of the log in this time says that spans could not be exported, in ms. */
const FAILURE_EVERY_MS = 60_000;

let tracer: Tracer | undefined;
let report: (failure: { readonly err: unknown }) => void = () => {};

/**
 * Whether the variables ask for traces: one names where spans go, or how.
 * @throws ServingError config_invalid for an exporter or a protocol that there is none for.
 */
export function asksForTraces(env: OtelVariables): boolean {
  if (env['OTEL_SDK_DISABLED']?.toLowerCase() === 'true') return false;
  const { OTEL_TRACES_EXPORTER: exporter, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT } = env;
  if (exporter === 'none') return false;
  if (exporter && exporter !== 'otlp') {
    throw new ServingError('config_invalid', `OTEL_TRACES_EXPORTER = ${exporter}: must be otlp or none`);
  }
  return Boolean(exporter || OTEL_EXPORTER_OTLP_ENDPOINT || OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
}

/**
 * Loads what makes spans, if the variables ask for it. Called once, before the service starts.
 * @param service `gateway`, `prefill`, …: the spans are named `llavacode-gateway` if OTEL_SERVICE_NAME does not say.
 * @throws ServingError config_invalid, naming the variable.
 */
export async function startTracing(service: string, env: OtelVariables): Promise<void> {
  if (!asksForTraces(env)) return;
  const { openTracer } = await import('./otlp.ts');
  tracer = openTracer(service, env, (err) => report({ err }));
}

/** @returns a function for the end of the process: it exports what is left, for 2 s at most, and never rejects. */
export function logTracing(log: Pick<Logger, 'info' | 'warn'>): () => Promise<void> {
  if (tracer === undefined) return async () => {};
  report = throttled(FAILURE_EVERY_MS, (failure, count) =>
    log.warn({ ...failure, count }, 'spans were not exported: they are lost, and requests go on'),
  );
  log.info('traces are exported');
  return closeTracing;
}

async function closeTracing(): Promise<void> {
  const closing = tracer?.close().catch((err: unknown) => report({ err }));
  const late = new Promise<void>((resolve) => void setTimeout(resolve, CLOSE_MS).unref());
  await Promise.race([closing, late]);
  tracer = undefined;
}

/** Whether spans are made at all. */
export const isTracing = () => tracer !== undefined;

/**
 * Begins the first span of this process for a request.
 * @param parent headers of the call that began it.
 * @returns undefined where traces are off.
 */
export const beginTrace = (name: string, parent: TraceHeaders, start: SpanStart): Span | undefined =>
  tracer?.begin(name, parent, start);

/** A stream as it is; its span ends when it does, with the code of its error. */
export const tracedStream = <T>(span: Pick<Span, 'end'> | undefined, stream: AsyncIterable<T>): AsyncIterable<T> =>
  span === undefined ? stream : endingWith(span, stream);

async function* endingWith<T>(span: Pick<Span, 'end'>, stream: AsyncIterable<T>): AsyncGenerator<T> {
  let error: string | undefined;
  try {
    yield* stream;
  } catch (cause) {
    error = ServingError.from(cause).code;
    throw cause;
  } finally {
    span.end(performance.now(), error);
  }
}

/** A promise as it is; its span ends when it settles, with the code of its error. */
export function traced<T>(span: Pick<Span, 'end'> | undefined, promise: Promise<T>): Promise<T> {
  if (span === undefined) return promise;
  return promise.then(
    (value) => {
      span.end(performance.now());
      return value;
    },
    (cause) => {
      span.end(performance.now(), ServingError.from(cause).code);
      throw cause;
    },
  );
}
