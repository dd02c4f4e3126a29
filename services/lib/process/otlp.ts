/**
 * Spans by OpenTelemetry's SDK, exported by OTLP over HTTP. The only importer of its packages; tracing.ts loads it if
 * traces are asked for. Spans wait in memory for at most 5 s (2,048 of them; further ones are dropped) and are sent in
 * the background: no request waits for that, or fails of it. The exporter reads OTEL_EXPORTER_OTLP_… by itself, and the
 * resource OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME; the SDK of this version leaves the others to us.
 */
import { randomUUID } from 'node:crypto';
import * as api from '@opentelemetry/api';
import { setGlobalErrorHandler, W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter as JsonExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { OTLPTraceExporter as ProtoExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import { detectResources, envDetector, resourceFromAttributes } from '@opentelemetry/resources';
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  type Sampler,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace';
import { BUILD_INFO } from './build-info.ts';
import { ServingError } from './errors.ts';
import type { Attributes, OtelVariables, Span, SpanStart, TraceHeaders, Tracer } from './span.ts';

const KINDS = {
  server: api.SpanKind.SERVER,
  client: api.SpanKind.CLIENT,
  internal: api.SpanKind.INTERNAL,
};

const propagator = new W3CTraceContextPropagator();

/**
 * @param onFailure is told why spans could not be exported.
 * @throws ServingError config_invalid, naming the variable.
 */
export function openTracer(service: string, env: OtelVariables, onFailure: (error: unknown) => void): Tracer {
  setGlobalErrorHandler(onFailure);
  const own = resourceFromAttributes({
    'service.name': `llavacode-${service}`,
    'service.version': BUILD_INFO.version,
    'service.instance.id': randomUUID(),
    'llavacode.role': service,
  });
  const provider = new TracerProvider({
    resource: own.merge(detectResources({ detectors: [envDetector] })),
    sampler: samplerOf(env),
    spanProcessors: [new BatchSpanProcessor({ exporter: exporterOf(env), ...batchesOf(env) })],
  });
  const tracer = provider.getTracer('llavacode', BUILD_INFO.version);
  return {
    begin(name, parent, start) {
      const context = propagator.extract(api.ROOT_CONTEXT, parent, api.defaultTextMapGetter);
      // One look at the clock of the day per trace and process: spans keep the monotonic clock's durations.
      return new OtelSpan(tracer, name, context, start, Date.now() - performance.now());
    },
    close: () => provider.shutdown(),
  };
}

class OtelSpan implements Span {
  readonly #tracer: api.Tracer;
  readonly #span: api.Span;
  readonly #context: api.Context;
  /** What makes a time of the monotonic clock one of the day, in ms. */
  readonly #dayMs: number;

  constructor(tracer: api.Tracer, name: string, parent: api.Context, start: SpanStart, dayMs: number) {
    const { kind = 'internal', atMs, attributes = {} } = start;
    this.#tracer = tracer;
    this.#dayMs = dayMs;
    this.#span = tracer.startSpan(
      name,
      { kind: KINDS[kind], startTime: atMs + dayMs, attributes: { ...attributes } as api.Attributes },
      parent,
    );
    this.#context = api.trace.setSpan(parent, this.#span);
  }

  get traceId(): string {
    return this.#span.spanContext().traceId;
  }

  get recorded(): boolean {
    return this.#span.isRecording();
  }

  get headers(): TraceHeaders {
    const headers: Record<string, string> = {};
    propagator.inject(this.#context, headers, api.defaultTextMapSetter);
    return headers;
  }

  rename(name: string): void {
    this.#span.updateName(name);
  }

  set(attributes: Attributes): void {
    this.#span.setAttributes({ ...attributes } as api.Attributes);
  }

  event(name: string, atMs: number, attributes: Attributes = {}): void {
    this.#span.addEvent(name, { ...attributes } as api.Attributes, atMs + this.#dayMs);
  }

  begin(name: string, start: SpanStart): Span {
    return new OtelSpan(this.#tracer, name, this.#context, start, this.#dayMs);
  }

  end(atMs: number, error?: string): void {
    if (error !== undefined) {
      this.#span.setStatus({ code: api.SpanStatusCode.ERROR });
      this.#span.setAttribute('error.type', error);
    }
    this.#span.end(atMs + this.#dayMs);
  }
}

/** `http/protobuf` where no variable says otherwise, as the specification has it. */
function exporterOf(env: OtelVariables) {
  const name = env['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL']
    ? 'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL'
    : 'OTEL_EXPORTER_OTLP_PROTOCOL';
  const protocol = env[name] || 'http/protobuf';
  if (protocol === 'http/protobuf') return new ProtoExporter();
  if (protocol === 'http/json') return new JsonExporter();
  throw invalid(name, protocol, 'must be http/protobuf or http/json (collectors take them on port 4318)');
}

/** https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#general-sdk-configuration */
function samplerOf(env: OtelVariables): Sampler {
  const name = env['OTEL_TRACES_SAMPLER'] || 'parentbased_always_on';
  const root = name.replace(/^parentbased_/, '');
  const samplers: Readonly<Record<string, () => Sampler>> = {
    always_on: () => new AlwaysOnSampler(),
    always_off: () => new AlwaysOffSampler(),
    traceidratio: () => new TraceIdRatioBasedSampler(numberOf(env, 'OTEL_TRACES_SAMPLER_ARG', 1)),
  };
  const make = samplers[root];
  if (make === undefined) {
    const known = Object.keys(samplers).flatMap((each) => [each, `parentbased_${each}`]);
    throw invalid('OTEL_TRACES_SAMPLER', name, `must be one of ${known.join(', ')}`);
  }
  return name === root ? make() : new ParentBasedSampler({ root: make() });
}

const batchesOf = (env: OtelVariables) => ({
  scheduledDelayMillis: numberOf(env, 'OTEL_BSP_SCHEDULE_DELAY', 5_000),
  exportTimeoutMillis: numberOf(env, 'OTEL_BSP_EXPORT_TIMEOUT', 30_000),
  maxQueueSize: numberOf(env, 'OTEL_BSP_MAX_QUEUE_SIZE', 2_048),
  maxExportBatchSize: numberOf(env, 'OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 512),
});

function numberOf(env: OtelVariables, name: string, otherwise: number): number {
  const text = env[name];
  if (!text) return otherwise;
  const value = Number(text);
  const ok = Number.isFinite(value) && (name === 'OTEL_TRACES_SAMPLER_ARG' ? value >= 0 && value <= 1 : value > 0);
  if (ok) return value;
  throw invalid(name, text, name === 'OTEL_TRACES_SAMPLER_ARG' ? 'must be from 0 to 1' : 'must be a number above 0');
}

const invalid = (name: string, value: string, why: string) =>
  new ServingError('config_invalid', `${name} = ${value}: ${why}`);
