(async () => {
  const client = new Client('127.0.0.1', PORT, 20000);
  for await (const reply of client.ask(['WHO', 'WHERE'])) break;
  for await (const reply of client.ask(['PING'])) console.log(reply);
  client.close();
})();
