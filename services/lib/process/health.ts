/** The small HTTP server beside a worker's gRPC port: /livez, /readyz and /metrics. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ServingError } from './errors.ts';
import type { Lifecycle } from './lifecycle.ts';
import { exposition, expositionType } from './metrics.ts';

/**
 * @param beforeScrape brings gauges up to date.
 * @returns host:port that it listens on.
 * @throws ServingError address_in_use.
 */
export async function serveHealth(
  host: string,
  port: number,
  life: Lifecycle,
  beforeScrape: () => void = () => {},
): Promise<string> {
  const server = createServer(async (request, response) => {
    const answer = (status: number, body: string, type = 'text/plain') =>
      response.writeHead(status, { 'content-type': type }).end(body);
    if (request.url === '/livez') answer(200, 'ok');
    else if (request.url === '/readyz') answer(life.phase === 'ready' ? 200 : 503, life.phase);
    else if (request.url === '/metrics') {
      beforeScrape();
      answer(200, await exposition(), expositionType);
    } else answer(404, 'try /livez, /readyz or /metrics');
  });
  server.headersTimeout = 5_000;
  server.requestTimeout = 5_000;
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(new ServingError('address_in_use', error.message, { cause: error })));
    server.listen(port, host, resolve);
  });
  life.onStop('health server', () => void server.close());
  const { port: bound } = server.address() as AddressInfo;
  return `${host.includes(':') ? `[${host}]` : host}:${bound}`;
}
