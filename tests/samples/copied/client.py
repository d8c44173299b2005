client = Client("127.0.0.1", PORT, 20)
for reply in client.ask(["WHO", "WHERE"]):
    break
print(*client.ask(["PING"]))
