/** A completion over a real socket, which the client can break. */
import { request as httpRequest } from 'node:http';
import type { FakeGateway } from './fake-gateway.ts';

/** Sends a completion to a gateway, which it makes listen. */
export async function post(gateway: FakeGateway, body: object) {
  const address = new URL(await gateway.app.listen({ port: 0 }));
  const request = httpRequest({
    port: address.port,
    method: 'POST',
    path: '/v1/completions',
    headers: { 'content-type': 'application/json' },
  });
  request.on('error', () => {}); // it is we who hang up
  request.end(JSON.stringify(body));
  return request;
}
