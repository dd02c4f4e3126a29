/** The small HTTP server beside a worker's gRPC port: /livez, /readyz and /metrics. */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ServingError } from './errors.ts';
import { formatHostPort } from './host-port.ts';
import type { Lifecycle } from './lifecycle.ts';
import { exposition, expositionType } from './metrics.ts';
import { listenError } from './os-errors.ts';

interface HealthOptions {
  /** Brings gauges up to date. */
  readonly beforeScrape?: () => void;
  /** A line that /readyz says after the phase. */
  readonly note?: string;
}

/**
 * Serves until the process ends, also while it drains, when probes and graphs matter most. The server does not keep the
 * process alive.
 * @returns the host:port that it listens on.
 * @throws ServingError address_in_use.
 */
export async function serveHealth(
  host: string,
  port: number,
  life: Pick<Lifecycle, 'phase'>,
  { beforeScrape = () => {}, note }: HealthOptions = {},
): Promise<string> {
  const noted = note === undefined ? '' : `\n${note}`;
  const server = createServer((request, response) => {
    const path = request.url?.split('?')[0];
    if (path === '/livez') answer(response, 200, 'ok');
    else if (path === '/readyz') {
      answer(response, life.phase === 'ready' ? 200 : 503, `${life.phase}${noted}`);
    } else if (path === '/metrics') void answerScrape(response, beforeScrape);
    else answer(response, 404, 'not found: try /livez, /readyz or /metrics');
  });
  server.headersTimeout = 5_000;
  server.requestTimeout = 5_000;
  server.unref();
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenError(`--metrics-host ${host} --metrics-port ${port}`, error)));
    server.listen(port, host, resolve);
  });
  const { port: bound } = server.address() as AddressInfo;
  return formatHostPort(host, bound);
}

function answer(response: ServerResponse, status: number, body: string, type = 'text/plain'): void {
  response.writeHead(status, { 'content-type': type }).end(body);
}

/** A gauge that cannot be read makes the scrape fail, not the process. */
async function answerScrape(response: ServerResponse, beforeScrape: () => void): Promise<void> {
  try {
    beforeScrape();
    answer(response, 200, await exposition(), expositionType);
  } catch (error) {
    answer(response, 500, ServingError.from(error).message);
  }
}
