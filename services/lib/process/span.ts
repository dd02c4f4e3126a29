/** Spans as the rest of the house knows them: what may be said of a stretch of time, and what makes it. */

/** What hands a trace on to the next process: the headers `traceparent` and `tracestate` of W3C Trace Context. */
export type TraceHeaders = Readonly<Record<string, string | readonly string[] | undefined>>;

export type Attributes = Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;

export interface SpanStart {
  /** `server` answers a call of another process, `client` is a call to one; `internal` where not given. */
  readonly kind?: 'server' | 'client' | 'internal';
  readonly atMs: number;
  readonly attributes?: Attributes;
}

/** One stretch of time of a trace. */
export interface Span {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** Whether it is exported; otherwise the sampler left the trace out, and only its id is handed on. */
  readonly recorded: boolean;
  /** The headers of calls that belong to this span. */
  readonly headers: TraceHeaders;
  rename(name: string): void;
  set(attributes: Attributes): void;
  event(name: string, atMs: number, attributes?: Attributes): void;
  begin(name: string, start: SpanStart): Span;
  /** @param error code of the error that it ended with. */
  end(atMs: number, error?: string): void;
}

/** What makes and exports spans. */
export interface Tracer {
  begin(name: string, parent: TraceHeaders, start: SpanStart): Span;
  /** Exports what is left. Its caller limits the time. */
  close(): Promise<void>;
}

/** The variables of OpenTelemetry, as the command line found them. */
export type OtelVariables = Readonly<Record<string, string | undefined>>;
