/** A collector of traces: it keeps the spans that processes send by OTLP over HTTP, as JSON. Tests use it too. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync } from 'node:zlib';

type Value = {
  stringValue?: string;
  intValue?: string | number;
  doubleValue?: number;
  arrayValue?: { values?: Value[] };
};
type KeyValue = { key: string; value: Value & { boolValue?: boolean } };

/** One span, as far as anybody here looks at it. Times are ms of the day. */
export interface ReceivedSpan {
  readonly service: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | undefined;
  readonly name: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly error: boolean;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly events: readonly { readonly name: string; readonly atMs: number; readonly attributes: object }[];
}

interface Body {
  resourceSpans: {
    resource: { attributes: KeyValue[] };
    scopeSpans: {
      spans: {
        traceId: string;
        spanId: string;
        parentSpanId?: string;
        name: string;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
        status?: { code?: number };
        attributes?: KeyValue[];
        events?: { name: string; timeUnixNano: string; attributes?: KeyValue[] }[];
      }[];
    }[];
  }[];
}

const plain = ({ stringValue, intValue, doubleValue, arrayValue, ...rest }: KeyValue['value']): unknown =>
  stringValue ??
  (intValue === undefined ? undefined : Number(intValue)) ??
  doubleValue ??
  rest.boolValue ??
  arrayValue?.values?.map(plain) ??
  [];
const attributesOf = (pairs: readonly KeyValue[] = []) =>
  Object.fromEntries(pairs.map(({ key, value }) => [key, plain(value)]));
const ms = (nanoseconds: string) => Number(BigInt(nanoseconds) / 1000n) / 1000;

function spansOf({ resourceSpans }: Body): ReceivedSpan[] {
  return resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        service: String(attributesOf(resource.attributes)['service.name']),
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId || undefined,
        name: span.name,
        startMs: ms(span.startTimeUnixNano),
        endMs: ms(span.endTimeUnixNano),
        error: span.status?.code === 2,
        attributes: attributesOf(span.attributes),
        events: (span.events ?? []).map(({ name, timeUnixNano, attributes }) => ({
          name,
          atMs: ms(timeUnixNano),
          attributes: attributesOf(attributes),
        })),
      })),
    ),
  );
}

/** @param answers status of each answer; while it is undefined, requests stay without one. */
export async function receiveTraces(answers: { status: number | undefined } = { status: 200 }) {
  const spans: ReceivedSpan[] = [];
  const types: string[] = [];
  const server = createServer(async (request, response) => {
    types.push(request.headers['content-type'] ?? '');
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const sent = Buffer.concat(chunks);
    const body = request.headers['content-encoding'] === 'gzip' ? gunzipSync(sent) : sent;
    if (answers.status === undefined) return;
    if (answers.status === 200 && types.at(-1) === 'application/json') spans.push(...spansOf(JSON.parse(String(body))));
    response
      .writeHead(answers.status, { 'content-type': types.at(-1) })
      .end(types.at(-1) === 'application/json' ? '{}' : '');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans,
    /** Content types of the requests so far. */
    types,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
